"""Have every library choose what computes the same bits in every run.

Source:
    Megatron-LM's ``--deterministic-mode`` (``megatron/training/determinism.py``), whose variables
    and values these are; docs.pytorch.org, "Reproducibility".
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vila_mc.errors import SetupError, TrainingError

_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    # Trees and switches that add up on the way may do so in another order.
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}
"""What libraries read when they are first used; the first value unless another of them is set."""

_NONE = " does not have a deterministic implementation"


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """While active, what has no deterministic algorithm ends the run.

    Enter it before anything is computed on a GPU or sent. It must not be torch's ``warn_only``:
    with that, attention keeps its faster backward pass, whose blocks add to one gradient in the
    order in which they come.

    Raises:
        SetupError: a variable of the environment asks for something else.
        TrainingError: in place of torch's own error.
    """
    for name, allowed in _VARIABLES.items():
        given = os.environ.get(name, allowed[0])
        if given not in allowed:
            raise SetupError(
                f"{name} is {given} in the environment, and train.deterministic needs it to be "
                f"{' or '.join(allowed)}. Unset it, or set train.deterministic to false."
            )
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ |= {name: _VARIABLES[name][0] for name in added}
    torch.use_deterministic_algorithms(True)  # of cuDNN, too
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NONE)
        if not found:
            raise
        raise TrainingError(
            f"train.deterministic is true, and {operation}{_NONE} on this device. Set it to false, "
            "or leave out what uses that operation."
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)
        for name in added:
            del os.environ[name]

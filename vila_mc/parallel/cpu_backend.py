"""Run Megatron-Core, unmodified, on CPU tensors and gloo.

Megatron-Core 0.19.2 assumes CUDA in a few places: it asks ``torch.cuda`` for the current device,
streams and random state, creates small tensors with a literal ``device="cuda"``, moves one buffer
with ``Tensor.cuda()``, and compares ``Tensor.type()`` with ``torch.cuda.FloatTensor``. While the
backend is active those touch points answer for the CPU. Everything replaced here would raise on a
machine without a GPU, so nothing that could have worked is changed.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from vila_mc.errors import SetupError
from vila_mc.parallel.megatron_patches import CPU_BACKEND
from vila_mc.torch_on_cpu import CPU, NullStream, TorchOnCpu, do_nothing

_FACTORIES = ("tensor", "zeros", "empty", "empty_like")

_active: ExitStack | None = None


def use_cpu_backend() -> None:
    """Activate the backend for this process; calling it again does nothing.

    Raises:
        SetupError: there is a GPU, where Megatron-Core must run as it is.
    """
    global _active
    if _active is not None:
        return
    if torch.cuda.is_available():
        raise SetupError("the CPU backend was asked for, but this process has a GPU. Use the GPU.")
    with ExitStack() as stack:
        values = _values()
        stack.enter_context(
            CPU_BACKEND.applied(*(values[target.split(":")[1]] for target in CPU_BACKEND.targets))
        )
        _active = stack.pop_all()


def undo_cpu_backend() -> None:
    """Put back everything ``use_cpu_backend`` replaced."""
    global _active
    if _active is not None:
        _active.close()
        _active = None


def _values() -> dict[str, Any]:
    """What stands for every attribute in the register."""
    return {
        "current_device": lambda: CPU,
        "set_device": do_nothing,
        "synchronize": do_nothing,
        "current_stream": NullStream,
        "Stream": NullStream,
        "Event": NullStream,
        "stream": NullStream,
        "manual_seed": torch.default_generator.manual_seed,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        # The tensor-parallel random tracker talks to CUDA generators through these two functions.
        "_get_cuda_rng_state": lambda *_, **__: torch.get_rng_state(),
        "_set_cuda_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "torch": TorchOnCpu(_FACTORIES),
        "Tensor.cuda": lambda tensor, *_, **__: tensor,
        "Tensor.type": _type_as_cuda(torch.Tensor.type),
    }


def _type_as_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type()`` names CUDA types, which is what Megatron's optimizer accepts."""

    def type_(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(tensor, *args, **kwargs)
        if not isinstance(result, str) or result.startswith("torch.cuda."):
            return result  # a tensor, or the name as a subclass of torch.Tensor asked for it here
        return result.replace("torch.", "torch.cuda.", 1)

    return type_

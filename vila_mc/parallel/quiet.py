"""Import Megatron-Core without its pages of warnings, and say the same in one line.

Megatron-Core 0.19.2 warns at import, from many modules, that Transformer Engine and NVIDIA Apex
are absent. Both are optional here.
"""

import logging
import os
import warnings

from vila_mc.parallel.installed import refuse_what_breaks_megatron


def quiet_megatron_import() -> None:
    """Silence optional-package warnings; call before the first ``import megatron.core``.

    Raises:
        SetupError: a package is installed that breaks the import, see
            ``refuse_what_breaks_megatron``.
    """
    refuse_what_breaks_megatron()
    # torch.compile gains nothing on the CPU here, costs 17 s in the first step, and fails beside
    # the CPU backend.
    if not _has_gpu():
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    # On a GPU a few small kernels are compiled, for which no process is worth starting.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    # As Megatron-Core does, our AdamW asks views of weights whether they have a gradient.
    warnings.filterwarnings("ignore", module=r"vila_mc\.parallel\.adam")
    names = "Apex|apex|Transformer Engine|transformer_engine"
    warnings.filterwarnings("ignore", message=rf".*({names}).*")
    # Megatron-Core 0.19.2 on torch 2.14 uses collectives and checkpoint calls torch has renamed.
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
    for name in ("megatron", "megatron.core", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_gpu() -> bool:
    """Without asking CUDA, which would then be initialised."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl")

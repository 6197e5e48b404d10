"""Import Megatron-Core without its pages of warnings, and say the same in one line.

Megatron-Core 0.19.2 warns at import, from many modules, that Transformer Engine and NVIDIA Apex
are absent. Both are optional here.
"""

import importlib.util
import logging
import os
import warnings

from vila_mc.errors import SetupError


def quiet_megatron_import() -> None:
    """Silence optional-package warnings; call before the first ``import megatron.core``.

    Raises:
        SetupError: the unrelated ``apex`` of PyPI is installed, which Megatron would take for
            NVIDIA's.
    """
    refuse_foreign_apex()
    # torch.compile gains nothing on the CPU here and costs 17 s in the first step.
    if not _has_gpu_driver():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    # As Megatron-Core does, our AdamW asks views of weights whether they have a gradient.
    warnings.filterwarnings("ignore", module=r"vila_mc\.parallel\.adam")
    names = "Apex|apex|Transformer Engine|transformer_engine"
    warnings.filterwarnings("ignore", message=rf".*({names}).*")
    # Megatron-Core 0.19.2 on torch 2.14 uses collectives and checkpoint calls torch has renamed.
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
    for name in ("megatron", "megatron.core", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def refuse_foreign_apex() -> None:
    """Raise SetupError if ``apex`` is importable but is not NVIDIA Apex."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or [])
    is_nvidia = any(os.path.isdir(os.path.join(folder, "multi_tensor_apply")) for folder in folders)
    if not is_nvidia:
        raise SetupError(
            "the package apex installed here is not NVIDIA Apex, and Megatron-Core would take it "
            "for that. Run: pip uninstall apex"
        )


def optional_packages() -> str:
    """One line about the optional accelerators of Megatron-Core."""
    found = {
        "Transformer Engine": importlib.util.find_spec("transformer_engine") is not None,
        "NVIDIA Apex": importlib.util.find_spec("apex") is not None,
    }
    words = [f"{name} {'found' if here else 'absent'}" for name, here in found.items()]
    return f"optional packages: {', '.join(words)}; torch layers are used"


def _has_gpu_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl")

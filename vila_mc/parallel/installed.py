"""Which optional accelerators are really here: by what they hold, never by their name alone."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from vila_mc.errors import SetupError

_TE, _TE_COMPILED = "transformer_engine", "transformer_engine_torch"


def refuse_what_breaks_megatron() -> None:
    """Refuse packages beside which ``import megatron.core`` fails or takes one for another.

    Raises:
        SetupError: PyPI's unrelated ``apex`` is installed, or Transformer Engine's Python part
            without its compiled one.
    """
    folders = _folders("apex")
    if folders and not any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        raise SetupError(
            "the package apex installed here is not NVIDIA Apex, and Megatron-Core would take it "
            "for that. Run: pip uninstall apex"
        )
    if _folders(_TE) and not has_compiled_transformer_engine():
        raise SetupError(
            "the package transformer_engine installed here has no compiled part for torch, and "
            "Megatron-Core cannot be imported beside it. Install that part as docs/gpu.md says, or "
            "run: pip uninstall transformer_engine"
        )


def has_compiled_transformer_engine() -> bool:
    """Whether Transformer Engine's compiled part for torch is here, real or emulated."""
    if _TE_COMPILED in sys.modules:
        return True
    places = [Path(sysconfig.get_paths()["purelib"])]
    for folder in _folders(_TE):
        places += [folder.parent, folder, folder / "wheel_lib"]
    return any(list(place.glob(f"{_TE_COMPILED}*.so")) for place in places)


def has_transformer_engine() -> bool:
    """Whether Megatron-Core uses Transformer Engine in this process, real or emulated."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return bool(HAVE_TE)


def transformer_engine_version() -> str | None:
    """Version of the Transformer Engine that Megatron-Core uses; None if it uses none."""
    if not has_transformer_engine():
        return None
    from megatron.core.utils import get_te_version

    return str(get_te_version())


def accelerator_versions() -> dict[str, str]:
    """Versions of the optional accelerators that this process computes with."""
    version = transformer_engine_version()
    return {} if version is None else {"transformer-engine": version}


def has_apex_optimizer() -> bool:
    """Whether NVIDIA Apex is here with the kernels of its FusedAdam."""
    return bool(_folders("apex")) and _is_here("amp_C")


def has_apex_weight_gradient() -> bool:
    """Whether NVIDIA Apex is here with the kernel that adds weight gradients to fp32 ones."""
    return _is_here("fused_weight_gradient_mlp_cuda")


def can_compile() -> bool:
    """Whether torch can compile for a GPU: with Triton, a C compiler and Python's headers."""
    named = os.environ.get("CC")
    compilers = (named,) if named else ("gcc", "clang")
    headers = Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    return _is_here("triton") and any(map(shutil.which, compilers)) and headers.is_file()


def optional_packages() -> str:
    """A few words about the optional accelerators of Megatron-Core."""
    version = transformer_engine_version()
    if version is None and _folders(_TE):
        version = "that does not load"
    parts = {"optimizer": has_apex_optimizer(), "weight gradient": has_apex_weight_gradient()}
    apex = ", ".join(name for name, here in parts.items() if here)
    return (
        f"Transformer Engine {version or 'absent'}, "
        f"NVIDIA Apex {f'with {apex}' if apex else 'absent'}"
    )


def _is_here(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _folders(package: str) -> list[Path]:
    """Where a package lies; nowhere if it is absent."""
    return list(_search(package))


def _search(package: str) -> Iterator[Path]:
    loaded = sys.modules.get(package)
    if loaded is not None:
        yield from map(Path, getattr(loaded, "__path__", []))
        return
    spec = importlib.util.find_spec(package)
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or [])

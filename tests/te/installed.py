"""What emulation has done to a process. Imported under emulation alone."""

import inspect
import sys
from collections.abc import Sequence

import transformer_engine as te_package
import transformer_engine.pytorch as te
import transformer_engine_torch as tex

from vila_mc.emulation.install import install
from vila_mc.errors import SetupError
from vila_mc.patch import owner_and_name


def second_gpu() -> str:
    """What is said to a second, other one."""
    install()
    try:
        install((10, 0))
    except SetupError as refusal:
        return str(refusal)
    return ""


def missing(targets: Sequence[str], global_names: Sequence[str]) -> list[str]:
    """Targets of patches, and globals of Transformer Engine's modules, that do not exist."""
    found = [hasattr(*owner_and_name(target)) for target in targets]
    modules = [m for name, m in sys.modules.items() if name.startswith("transformer_engine.")]
    lost = [target for target, is_there in zip(targets, found, strict=True) if not is_there]
    return lost + [name for name in global_names if not any(name in vars(m) for m in modules)]


def refusal(name: str) -> str:
    """What a function that is not emulated says when it is called."""
    try:
        getattr(tex, name)(1, two=2)
    except NotImplementedError as said:
        return str(said)
    return ""


def release() -> str:
    """Of the Transformer Engine that is executed."""
    return str(te_package.__version__)


def available() -> dict[str, bool]:
    """Which recipes Transformer Engine offers."""
    return {
        "fp8": te.is_fp8_available(),
        "blockwise": te.is_fp8_block_scaling_available(),
        "mxfp8": te.is_mxfp8_available(),
    }


def signatures() -> dict[str, list[str]]:
    """Arguments of every emulated function, less what older releases gave as well."""
    found = {}
    for name, function in tex.functions.items():
        parameters = inspect.signature(function).parameters.values()
        found[name] = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    return found

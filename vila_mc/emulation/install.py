"""Putting the emulated extension in place, and Transformer Engine on the path."""

import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d

from vila_mc.emulation.emulated_cuda import EmulatedCuda, emulated_torch
from vila_mc.emulation.extension.capability import (
    CAPABILITIES,
    H100,
    emulate,
    emulated_capability,
)
from vila_mc.emulation.te_patches import TE_COLLECTIVES, TE_GLOBALS, TE_IMPORT, TE_TENSORS
from vila_mc.errors import SetupError
from vila_mc.torch_on_cpu import CPU, is_cuda

WHEEL_FOLDER = "VILA_MC_TE_FOLDER"
"""Environment variable with the folder that holds Transformer Engine's pure wheel, unpacked."""
OLDEST = (2, 14)
"""The oldest release that has been run."""
_EXTENSION = "transformer_engine_torch"
_ENVIRONMENT = {
    "NVTE_PROJECT_BUILDING": "1",  # transformer_engine.common then loads no library
    "NVTE_TORCH_COMPILE": "0",
}
_ASSERT_CUDA = (
    "transformer_engine.pytorch.module.base",
    "transformer_engine.pytorch.attention",
)
"""Modules that refuse tensors off CUDA. Float8 tensors have an ``is_cuda`` that must stay false."""

_patches: ExitStack | None = None


def install(capability: tuple[int, int] = H100) -> None:
    """Make ``import transformer_engine`` work in this process, on the CPU, as on one GPU.

    To be called before megatron.core is imported, which decides then whether there is a Transformer
    Engine. Calling it again does nothing. It cannot be undone.

    Args:
        capability: of the GPU that is emulated: (8, 0), (9, 0) or, for MXFP8, (10, 0).

    Raises:
        SetupError: there is a GPU, or a real Transformer Engine; its wheel is not there;
            megatron.core has been imported; another GPU is emulated already.
    """
    global _patches
    _refuse_what_is_real()
    if capability not in CAPABILITIES:
        known = ", ".join(f"{key} ({name})" for key, name in CAPABILITIES.items())
        raise SetupError(f"a GPU of capability {capability} is not emulated. Choose of {known}.")
    if _patches is not None:
        _refuse_another(capability)
        return
    if "megatron.core" in sys.modules:
        raise SetupError(
            "Transformer Engine is to be emulated, but megatron.core has been imported without it. "
            "Install the emulation first."
        )
    _put_on_path(wheel_folder())
    emulate(capability)
    os.environ.update(_ENVIRONMENT)
    with ExitStack() as stack:
        stack.enter_context(TE_TENSORS.applied(*_tensor_attributes()))
        stack.enter_context(TE_COLLECTIVES.applied(_one_by_one, _one_by_one))
        _import()
        stack.enter_context(_globals())
        _patches = stack.pop_all()


def is_installed() -> bool:
    """Whether this process emulates Transformer Engine."""
    return _patches is not None


def wheel_folder() -> Path:
    """Where Transformer Engine's pure wheel lies, unpacked, off the ordinary path.

    ``import megatron.core`` would take it for a whole one and fail for want of its library.

    Raises:
        SetupError: it is not there.
    """
    named = os.environ.get(WHEEL_FOLDER)
    folder = Path(named) if named else Path(sys.prefix) / "transformer_engine_wheel"
    if not (folder / "transformer_engine").is_dir():
        raise SetupError(
            f"{folder} does not hold the wheel of Transformer Engine that emulation executes. Run "
            "bash tools/setup_venv.sh, which puts it into .venv; in another environment unpack it "
            f"(docs/gpu.md) and name the folder by {WHEEL_FOLDER}."
        )
    return folder


def _refuse_what_is_real() -> None:
    if torch.cuda.is_available():
        raise SetupError(
            "emulation of Transformer Engine was asked for, but this process has a GPU. Use it."
        )
    for distribution in (_EXTENSION, "transformer_engine_cu12", "transformer_engine_cu13"):
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        raise SetupError(
            f"emulation of Transformer Engine was asked for, but the real one ({distribution}) is "
            "installed in this environment. Use one without it."
        )


def _refuse_another(wanted: tuple[int, int]) -> None:
    emulated = emulated_capability()
    if wanted != emulated:
        raise SetupError(
            f"this process emulates {CAPABILITIES[emulated]}, and cannot emulate "
            f"{CAPABILITIES[wanted]} as well. Start another."
        )


def _put_on_path(folder: Path) -> None:
    sys.path.append(str(folder))
    found = version("transformer_engine")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise SetupError(f"{folder} holds Transformer Engine {found}; {oldest} or newer is needed.")


def _import() -> None:
    """Import Transformer Engine over the emulated extension."""
    from vila_mc.emulation.extension.module import EmulatedExtension

    sys.modules["transformer_engine.pytorch.onnx_extensions"] = _WithoutOnnx()
    with warnings.catch_warnings():
        # It finds no compiled part, and says so; transformer_engine.common is there now.
        warnings.simplefilter("ignore")
        os.environ.pop("NVTE_FRAMEWORK", None)
        importlib.import_module("transformer_engine")
        sys.modules[_EXTENSION] = EmulatedExtension()
        cuda = EmulatedCuda()
        with TE_IMPORT.applied(
            cuda.get_device_properties,
            cuda.get_device_capability,
            cuda.current_device,
            lambda framework: None,
        ):
            importlib.import_module("transformer_engine.pytorch")


class _WithoutOnnx(types.ModuleType):
    """Stands for the export to ONNX, whose packages weigh more than all else together."""

    def __init__(self) -> None:
        super().__init__("transformer_engine.pytorch.onnx_extensions")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{name}: export to ONNX is not emulated")

        return refuse


def _globals() -> Any:
    """The patch of TE_GLOBALS, in every module that has one of them."""
    values = {
        "torch": emulated_torch(),
        "_get_cuda_rng_state": lambda *_, **__: torch.get_rng_state(),
        "_set_cuda_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "canonicalize_device": lambda device=None: _on_cpu_or_meta(device),
    }
    found = [
        (f"{module_name}:{name}", values[name])
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("transformer_engine.")
        for name in values
        if name in vars(module)
    ]
    targets, new = zip(*found, strict=True)
    return TE_GLOBALS.at(targets).applied(*new)


def _on_cpu_or_meta(device: Any) -> torch.device:
    return torch.device("meta" if getattr(device, "type", device) == "meta" else "cpu")


def _tensor_attributes() -> tuple[Any, ...]:
    """``is_cuda``, ``to`` and ``cuda`` of tensors."""
    is_on_cuda = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]
    move = torch.Tensor.to

    def says_cuda(tensor: torch.Tensor) -> bool:
        asker = sys._getframe(1).f_globals.get("__name__", "")
        return bool(is_on_cuda(tensor)) or asker.startswith(_ASSERT_CUDA)

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_move = bool(args and is_cuda(args[0])) or is_cuda(kwargs.get("device"))
        if args and is_cuda(args[0]):
            args = (CPU, *args[1:])
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if is_move and tensor.device == CPU and len(args) + len(kwargs) == 1:
            return tensor  # a quantized one would be made anew
        return move(tensor, *args, **kwargs)

    return property(says_cuda), to, lambda tensor, *_, **__: tensor


class _Works:
    """What ``_coalescing_manager`` gives: the collectives that were started inside it."""

    def __init__(self) -> None:
        self.started: list[Any] = []

    def wait(self) -> None:
        for work in self.started:
            work.wait()


@contextmanager
def _one_by_one(group: Any = None, device: Any = None, async_ops: bool = False) -> Iterator[_Works]:
    """In place of coalescing: at the end every collective is started by itself."""
    group = group or c10d._get_default_group()
    recorded = c10d._world.pg_coalesce_state
    recorded[group] = []  # from here on torch writes collectives down instead of starting them
    works = _Works()
    yield works
    for each in recorded.pop(group):
        tensors = (each.tensor,) if each.dst_tensor is None else (each.dst_tensor, each.tensor)
        how = () if each.redop is None else (each.redop,)
        work = each.op(*tensors, *how, group=group, async_op=async_ops)
        works.started += [work] if async_ops else []

"""Run a module whose weights do not fit in memory: each is read when it is used, then forgotten."""

import ctypes
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vila_mc.parallel.megatron_patches import META_PARAMETERS

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""A function of glibc; other systems have none."""


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """While active, modules are built with parameters on the meta device, and real buffers."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = _on_meta(parameter)

    with META_PARAMETERS.applied(register_on_meta):
        yield


def stream_weights(
    module: nn.Module, read: Callable[[str], Tensor], resident: Collection[str] = ()
) -> None:
    """Make every submodule read its own weights before it runs, in fp32, and drop them after.

    Args:
        module: its parameters are on the meta device.
        read: the values of a parameter by its name in ``module``.
        resident: parameters that are read now and kept, because another module uses them too.
    """
    for prefix, part in module.named_modules():
        names = {name: f"{prefix}.{name}".removeprefix(".") for name in part._parameters}
        own = {
            name: full
            for name, full in names.items()
            if part._parameters[name] is not None and full not in resident
        }
        for name, full in names.items():
            if full in resident:
                part._parameters[name] = _in_memory(read(full))
        if own:
            _stream_own(part, own, read)


def _stream_own(part: nn.Module, names: dict[str, str], read: Callable[[str], Tensor]) -> None:
    def load(*_: Any) -> None:
        for name, full in names.items():
            part._parameters[name] = _in_memory(read(full))

    def drop(*_: Any) -> None:
        for name in names:
            parameter = part._parameters[name]
            assert parameter is not None
            part._parameters[name] = _on_meta(parameter)
        _return_freed_memory()

    part.register_forward_pre_hook(load)
    part.register_forward_hook(drop)


def _return_freed_memory() -> None:
    """Have glibc return what was freed to the system.

    It keeps blocks of up to 32 MiB for later, in holes that the aligned blocks of the next layer do
    not fit into: a tower of 300 M weights would be in memory in the end, all of it.
    """
    if _TRIM is not None:
        _TRIM(0)


def _in_memory(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float(), requires_grad=False)


def _on_meta(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

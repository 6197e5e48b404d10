"""``torch`` as code that takes CUDA for granted is given it on a machine without a GPU."""

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

CPU = torch.device("cpu")


class NullStream:
    """Stands for a CUDA stream or event: the CPU has one order of execution, so all is ready."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return do_nothing

    def __enter__(self) -> "NullStream":
        return self

    def __exit__(self, *exception: object) -> None: ...


class TorchOnCpu(types.ModuleType):
    """``torch``, but that the named factories make on the CPU what is asked for on CUDA.

    Args:
        factories: functions of torch with a ``device`` or ``map_location``.
        replaced: other attributes that differ.
    """

    def __init__(self, factories: Iterable[str], **replaced: Any) -> None:
        super().__init__("torch")
        vars(self).update({name: _on_cpu(getattr(torch, name)) for name in factories})
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for what has nothing to do on a CPU."""


def is_cuda(device: Any) -> bool:
    """Whether a device, or the name of one, is a CUDA device."""
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        for name in ("device", "map_location"):
            if is_cuda(kwargs.get(name)):
                kwargs[name] = CPU
        return factory(*args, **kwargs)

    return create

"""The module that is imported as ``transformer_engine_torch``."""

import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from vila_mc.emulation.extension import (
    activations,
    device,
    enums,
    gemm,
    master_weights,
    multi_tensor,
    normalization,
    quantization,
    rope,
    rows,
    scales,
    softmax,
)

FAMILIES = (
    device,
    gemm,
    master_weights,
    multi_tensor,
    normalization,
    quantization,
    rope,
    rows,
    scales,
    softmax,
)
"""Modules whose public functions are the extension's own."""


class EmulatedExtension(types.ModuleType):
    """Functions of all families, enums, and for any other name a refusal."""

    functions: dict[str, Callable[..., Any]]
    """What is called, by name: looked up at every call, so that tests can plant faults."""
    calls: Counter[str]
    """How often each has been called."""

    def __init__(self) -> None:
        super().__init__("transformer_engine_torch", "Emulated by vila_mc.emulation.")
        self.calls = Counter()
        self.functions = emulated_functions()
        vars(self).update({name: self._called(name) for name in self.functions})
        vars(self).update(enums.OPEN)
        vars(self).update({name: kind for name, kind in vars(enums).items() if _is_class(kind)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name.islower():
            raise AttributeError(f"transformer_engine_torch.{name} is not emulated on a CPU")
        return functools.partial(_refuse, name)

    def _called(self, name: str) -> Callable[..., Any]:
        @functools.wraps(self.functions[name])
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            with torch.no_grad():
                return self.functions[name](*args, **kwargs)

        return call


def emulated_functions() -> dict[str, Callable[..., Any]]:
    """The extension's functions that are emulated, by name."""
    found: dict[str, Callable[..., Any]] = dict(activations.FUNCTIONS)
    for family in FAMILIES:
        for name, function in inspect.getmembers(family, inspect.isfunction):
            is_here = function.__module__ == family.__name__
            if is_here and not name.startswith("_"):
                found[name] = function
    return found


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__module__ == enums.__name__ and kind.__name__[0] != "_"


def _refuse(name: str, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(f"transformer_engine_torch.{name} is not emulated on a CPU")

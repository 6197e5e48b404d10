"""Replacing attributes of other people's modules, and putting the originals back.

What is replaced stands in registers: ``parallel/megatron_patches.py``,
``emulation/te_patches.py`` and ``rehearsal/device_patches.py``. Nothing else in vila_mc assigns to
a module, a class or a method that is not its own; a test reads the code for it.
"""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What is replaced together, for one reason."""

    targets: tuple[str, ...]
    """``module:attribute`` or ``module:Class.attribute``; a module may be a pattern."""
    what: str
    """What stands there instead."""
    why: str
    where: str
    """The module that applies it."""
    undone: str
    """When the original comes back."""

    @contextmanager
    def applied(self, *values: Any) -> Iterator[None]:
        """Replace every target by its value, in order; put the originals back at the end."""
        with ExitStack() as stack:
            for target, value in zip(self.targets, values, strict=True):
                stack.enter_context(_replaced(*owner_and_name(target), value))
            yield

    def at(self, targets: Iterable[str]) -> "Patch":
        """The same at these targets, where the register names them by a pattern."""
        return replace(self, targets=tuple(targets))

    def put_on(self, instance: Any, method: Any) -> None:
        """Replace the one target on one object alone, for its life."""
        (target,) = self.targets
        setattr(instance, target.rpartition(".")[2], method)


def owner_and_name(target: str) -> tuple[Any, str]:
    """The object that a target is an attribute of, and the name of that attribute."""
    module, _, path = target.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for step in classes:
        owner = getattr(owner, step)
    return owner, name


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    is_own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, original)
        else:  # torch.Tensor inherits what is replaced
            delattr(owner, name)

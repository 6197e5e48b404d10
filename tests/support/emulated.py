"""Run functions where Transformer Engine is emulated: in processes of their own.

Megatron-Core decides at import whether there is a Transformer Engine, so the tests' own process
cannot have it. One process installs the emulation and imports Megatron-Core; every call is forked
from it, so that none sees what another has left behind.
"""

import importlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks
from vila_mc.emulation.install import WHEEL_FOLDER, install, wheel_folder

H100, B200 = (9, 0), (10, 0)


class Emulated:
    """Calls functions under emulation of one GPU.

    They are given as ``module:function``, for their modules may import Transformer Engine, which
    the tests' own process cannot.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, function: str, *arguments: Any, **options: Any) -> Any:
        """What ``function`` returns on one rank."""
        return self.ranks(1, function, *arguments, **options)[0]

    def ranks(self, world_size: int, function: str, *arguments: Any, **options: Any) -> list[Any]:
        """What it returns on each of several."""
        return self._pool.submit(_fork, world_size, function, arguments, options).result()


@contextmanager
def emulated(capability: tuple[int, int] = H100, folder: Path | None = None) -> Iterator[Emulated]:
    """Start the process that calls are forked from.

    Args:
        folder: of another wheel than the pinned one.

    Raises:
        SetupError: Transformer Engine's wheel is not there.
    """
    folder = folder or wheel_folder()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, context, initializer=_prepare, initargs=(capability, str(folder))
    ) as pool:
        yield Emulated(pool)


def _prepare(capability: tuple[int, int], folder: str) -> None:
    os.environ[WHEEL_FOLDER] = folder
    install(capability)
    import tests.support.preload  # noqa: F401


def _fork(world_size: int, function: str, arguments: Any, options: Any) -> list[Any]:
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    context = multiprocessing.get_context("fork")
    return run_ranks(world_size, called, *arguments, context=context, **options)

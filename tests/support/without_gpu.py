"""Call a function in a process that sees no GPU, to compare with what this one computes on it."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def without_gpu(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What ``function`` returns on the CPU. It must be importable, and leave nothing behind."""
    return _worker().submit(function, *arguments, **options).result()


@cache
def _worker() -> ProcessPoolExecutor:
    """One process for all calls: importing Megatron-Core takes longer than most of them."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with hidden_gpus():
        pool.submit(os.getpid).result()  # the first call starts the process
    return pool


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """Processes started meanwhile see no GPU; this one goes on as it is."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = before

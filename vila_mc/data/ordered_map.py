"""A function over a stream, on several processes, in order and in bounded memory."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from vila_mc.errors import ConfigError, SetupError

_AHEAD = 3
"""Items per process that may be under way or waiting."""


def ordered_map[T, R](
    make: Callable[..., Callable[[T], R]],
    arguments: tuple[Any, ...],
    items: Iterable[T],
    workers: int,
) -> Generator[R]:
    """A function of every item, in the order of the items whatever the number of workers.

    Unlike ``Pool.imap``, this reads ``items`` only a little ahead of the results, and notices a
    process that was killed. Items should be worth a trip to another process, tenths of a second.

    Args:
        make: called once in each process with ``arguments``, makes the function; importable.
        arguments: of ``make``.
        items: what to map; read in this process.
        workers: processes; 1 works in this process, and so does a single item.

    Raises:
        SetupError: a process was killed.
    """
    stream = iter(items)
    first = list(islice(stream, 2))
    stream = chain(first, stream)
    if not first:
        return
    if workers == 1 or len(first) < 2:
        yield from map(make(*arguments), stream)
        return
    yield from _on_pool(make, arguments, stream, workers)


def check_workers(workers: int) -> None:
    """Refuse fewer processes than one. Raises ConfigError."""
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1.", option="workers")


def _on_pool[T, R](
    make: Callable[..., Callable[[T], R]],
    arguments: tuple[Any, ...],
    items: Iterator[T],
    workers: int,
) -> Generator[R]:
    # Not forked from this process, which may have threads (the progress bar), but from one that
    # has imported what the workers need.
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    pool = ProcessPoolExecutor(workers, context, _initialise, (make, arguments))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise SetupError(
            f"one of the {workers} worker processes was killed; most often memory ran out. Use "
            "fewer, or accept only smaller images.",
            option="workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]
"""What a worker process computes; it is handed nothing but items."""


def _call(item: Any) -> Any:
    return _function(item)


def _initialise(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C is for the parent to handle; it then ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Hugging Face's tokenizers would start a thread per core in every process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _function
    _function = make(*arguments)


def _end_with_parent() -> None:
    """A parent that was killed cannot end the pool, whose processes would wait forever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

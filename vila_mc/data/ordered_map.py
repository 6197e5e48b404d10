"""A function over a stream, on several processes, in order and in bounded memory."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import batched
from multiprocessing import get_context
from typing import Any

from vila_mc.errors import SetupError

_BATCH = 16
"""Items sent to a process at a time."""
_BATCHES_AHEAD = 3
"""Batches per process that may be under way or waiting."""


def ordered_map[T, R](
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    initialiser: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Generator[R]:
    """``function`` of every item, in the order of the items whatever the number of workers.

    Unlike ``Pool.imap``, this reads ``items`` only a little ahead of the results, and notices a
    process that was killed.

    Args:
        function: a module-level function.
        items: what to map; read in this process.
        workers: processes; 1 works in this process.
        initialiser: called once in each process with ``arguments`` before any item.
        arguments: of the initialiser.

    Raises:
        SetupError: a process was killed.
    """
    if workers == 1:
        initialiser(*arguments)
        yield from map(function, items)
        return
    # Started afresh rather than forked: this process may have threads (the progress bar).
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _initialise, (initialiser, arguments))
    waiting: deque[Future[list[R]]] = deque()
    try:
        for batch in batched(items, _BATCH):
            waiting.append(pool.submit(_map_batch, function, batch))
            if len(waiting) >= workers * _BATCHES_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise SetupError(
            f"one of the {workers} worker processes was killed; most often memory ran out. Use "
            "fewer --workers or lower --max-pixels."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _map_batch[T, R](function: Callable[[T], R], batch: tuple[T, ...]) -> list[R]:
    return [function(item) for item in batch]


def _initialise(initialiser: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C is for the parent to handle; it then ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    initialiser(*arguments)

"""Run a function on several gloo ranks and collect what each returns.

Ranks are forked from one server process that has already imported torch and Megatron-Core, so a
test pays for the import once and not once per rank.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
"""Processes that it starts have imported torch and Megatron-Core."""
SERVER.set_forkserver_preload(["tests.support.preload"])


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout: float = 240.0,
    context: Any = SERVER,
    **options: Any,
) -> list[Any]:
    """Call ``function(*arguments, **options)`` on ``world_size`` ranks; results by rank.

    ``context`` of multiprocessing starts them.

    Raises:
        AssertionError: a rank raised (with its traceback), died, or did not finish in time.
    """
    results = context.Queue()
    with _reserved_port() as port:
        processes = [
            context.Process(
                target=_rank_main,
                args=(rank, world_size, port, results, partial(function, *arguments, **options)),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers: dict[int, Any] = {}
            for _ in processes:
                rank, error, value = results.get(timeout=timeout)
                assert error is None, f"rank {rank} of {world_size} failed:\n{error}"
                answers[rank] = value
            return [answers[rank] for rank in range(world_size)]
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()


@contextmanager
def ranks_that_may_die(
    world_size: int, function: Callable[..., int], *arguments: Any
) -> Iterator[list[BaseProcess]]:
    """Processes that end with the exit code that ``function`` returns; none is left at the end."""
    task = partial(function, *arguments)
    with _reserved_port() as port:
        processes: list[BaseProcess] = [
            SERVER.Process(target=_exit_with, args=(rank, world_size, port, task), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            yield processes
        finally:
            for process in processes:
                process.join(timeout=30)
                if process.is_alive():
                    process.kill()
                    process.join()


def _exit_with(rank: int, world_size: int, port: int, function: Callable[[], int]) -> None:
    _be_rank(rank, world_size, port)
    sys.exit(function())


def _rank_main(
    rank: int,
    world_size: int,
    port: int,
    results: Any,
    function: Callable[[], Any],
) -> None:
    _be_rank(rank, world_size, port)
    try:
        results.put((rank, None, function()))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))


def _be_rank(rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that rank 0 can listen on and nobody else is given meanwhile.

    While it is bound here the kernel hands it to no one; torch's store asks for it by number, and
    may have it, as both sides say SO_REUSEADDR and this one does not listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]

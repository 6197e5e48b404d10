"""Where every thread of a rank is, on request and at its end: for a run that hangs. No torch.

Python's own faulthandler writes it from the signal's handler, so that a rank which is stuck in
native code, or was stopped, can still be asked.
"""

import faulthandler
import signal
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import psutil

_REQUEST = signal.SIGQUIT
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_MOST_LINES = 80
"""Of one rank that are shown; a rank has some twenty threads, of which few run Python."""
_MOST_BYTES = 2**16


def keep_stacks(directory: Path, rank: int) -> None:
    """Let this process write its stacks there when it is asked, or dies of a fault in native code,
    as of NCCL's watchdog."""
    file = _path(directory, rank).open("a")  # faulthandler keeps it open
    faulthandler.enable(file)
    faulthandler.register(_REQUEST, file)


def keep_traceback(directory: Path, rank: int, error: BaseException) -> None:
    """Write where this rank was when ``error`` ended it."""
    try:
        with _path(directory, rank).open("a") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # of a launcher that is gone
        return


def ask_for_stacks(directory: Path, processes: Iterable[tuple[int, int]]) -> None:
    """Let processes write their stacks, and wait until they have, or cannot.

    Args:
        directory: where they ``keep_stacks``.
        processes: rank and process id of each. One that is stopped is woken to answer.
    """
    waited_for = []
    for rank, process_id in processes:
        if not _path(directory, rank).exists():  # it would die of the request
            continue
        try:
            psutil.Process(process_id).send_signal(_REQUEST)
            psutil.Process(process_id).resume()
        except psutil.NoSuchProcess:
            continue
        waited_for.append(rank)
    ends = time.monotonic() + _PATIENCE_SECONDS
    sizes: list[int] = []
    while time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS)
        before, sizes = sizes, [_path(directory, rank).stat().st_size for rank in waited_for]
        if sizes == before and all(sizes):
            return


def read_stacks(directory: Path, rank: int) -> list[str]:
    """What a rank has written, line by line, its main thread last; none if it has not."""
    try:
        with _path(directory, rank).open(errors="replace") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except FileNotFoundError:
        return []
    return ["..."] * (len(lines) > _MOST_LINES) + lines[-_MOST_LINES:]


def _path(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank}.stacks"

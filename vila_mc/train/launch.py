"""Start the ranks of this machine with torchrun's launcher, and end with one honest exit code.

``torchrun tools/train.py ...`` works too. This adds what a person at a terminal wants: Ctrl-C lets
every rank finish its step and save, and a rank's error is one line, not one traceback per rank.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from vila_mc.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from vila_mc.train.rank import LAUNCHED_BY_US


def launch(
    command: Sequence[str], *, ranks: int, nodes: int = 1, rendezvous: str = "localhost:0"
) -> int:
    """Run ``python COMMAND...`` once per rank and wait.

    Args:
        command: script and its arguments.
        ranks: ranks on this machine.
        nodes: machines in all; each runs this with the same rendezvous.
        rendezvous: host:port of one of them, free port chosen if 0.

    Returns:
        0, 130 if the run was stopped and saved, 2 for a user's mistake, 1 for a rank that died.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHED_BY_US] = str(os.getpid())
    # What a failed rank means is said below, in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Lets sequence-parallel communication start before the matrix product that hides it.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per rank; torchrun warns otherwise
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        run_id="vila_mc",
        max_restarts=0,
        # SIGINT and SIGTERM are ours: torchrun would kill the ranks before they have saved. When
        # one of them dies it gives the others 30 s to end.
        signals_to_handle="SIGQUIT",
    )
    forward = _ForwardStop()
    with forward:
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return _explain(error, was_stopped=forward.was_used)
    return EXIT_OK


class _ForwardStop:
    """While active, passes SIGINT and SIGTERM on to the ranks as a request to stop."""

    def __init__(self) -> None:
        self.was_used = False

    def __enter__(self) -> "_ForwardStop":
        self.previous = {
            number: signal.signal(number, self._forward)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if not self.was_used:
            print("stopping: every rank finishes its step and saves", file=sys.stderr, flush=True)
        self.was_used = True
        for child in psutil.Process().children(recursive=True):
            try:
                child.send_signal(signal.SIGINT)
            except psutil.NoSuchProcess:
                continue


def _explain(error, was_stopped: bool) -> int:  # type: ignore[no-untyped-def]
    """One line about the first rank that failed, and the exit code that fits it."""
    rank, failure = error.get_first_failure()
    exit_codes = {other.exitcode for other in error.failures.values()}
    if EXIT_INTERRUPTED in exit_codes:
        print("stopped and saved; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    if was_stopped:
        print("stopped before the first step; nothing was lost", file=sys.stderr)
        return EXIT_INTERRUPTED
    # A mistake that only one rank can see ends the others, sometimes before it is reported.
    for other in error.failures.values():
        if other.exitcode == EXIT_USER_ERROR:
            print(f"error: {_message(other)}", file=sys.stderr)
            return EXIT_USER_ERROR
    how = (
        f"was killed by {signal.Signals(-failure.exitcode).name}"
        if failure.exitcode < 0
        else f"ended with exit code {failure.exitcode}"
    )
    print(
        f"error: rank {rank} {how}; the other ranks were stopped. Checkpoints are whole: the same "
        "command goes on from the newest one.",
        file=sys.stderr,
    )
    return EXIT_FAULT


def _message(failure) -> str:  # type: ignore[no-untyped-def]
    data = failure.error_file_data.get("message")
    text = data.get("message", "") if isinstance(data, dict) else str(data)
    return text.split(": ", 1)[-1].strip() if "Error: " in text else text.strip()

"""Starting a run again by itself after a fault, for as long as that may help."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vila_mc.errors import ExitCode, say
from vila_mc.observe.history import record_end
from vila_mc.observe.metrics import last_step
from vila_mc.train.stop_signals import StopSignals

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 300.0
"""Before the first restart, and before any; the second doubles from one to the next."""
_AT_ONE_STEP = 3
"""Faults after the same step in a row that are taken for one that always comes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one start of a run ended."""

    code: ExitCode
    cause: str = ""
    """Of a fault or mistake, in one line."""


def start_until_done(
    start: Callable[[int], Outcome],
    output: Path,
    *,
    most: int,
    stop: StopSignals,
    deadline: float,
    pause: Callable[[float], None] = time.sleep,
) -> ExitCode:
    """Start a run, and after a fault again: every start goes on from the newest whole checkpoint.

    A user's mistake is not tried again, nor a fault that came after the same step three times in a
    row, nor after a request to stop.

    Args:
        start: runs to an end, given how many restarts came before.
        output: of the run; every end is recorded there.
        most: restarts in all.
        stop: requests to stop.
        deadline: when the run should be over, in seconds since the epoch.
        pause: waits so many seconds.

    Returns:
        the exit code of the last start; REQUEUE if only time was lacking for another.

    Raises:
        StoppedError: asked to stop between two starts.
    """
    failed_after: list[int] = []
    for restarts in itertools.count():
        outcome = start(restarts)
        record_end(output, outcome.code, outcome.cause)
        if outcome.code is not ExitCode.FAULT or most == 0 or stop.code is not None:
            return outcome.code
        failed_after.append(last_step(output))
        if restarts == most:
            say(f"error: not started again: {most} restarts are used up", to_stderr=True)
            return ExitCode.FAULT
        if failed_after[-_AT_ONE_STEP:] == [failed_after[-1]] * _AT_ONE_STEP:
            say(
                f"error: not started again: the last {_AT_ONE_STEP} starts all failed after step "
                f"{failed_after[-1]}",
                to_stderr=True,
            )
            return ExitCode.FAULT
        seconds = min(_FIRST_PAUSE_SECONDS * 2**restarts, _LONGEST_PAUSE_SECONDS)
        if time.time() + seconds >= deadline:
            say("not started again: no time is left before the limit", to_stderr=True)
            return ExitCode.REQUEUE
        say(f"restart {restarts + 1} of {most} in {seconds:.0f} s", to_stderr=True)
        with stop.waiting():
            pause(seconds)
    raise AssertionError("count() has no end")

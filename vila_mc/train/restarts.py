"""Starting a run again by itself after a fault, for as long as that may help."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vila_mc.errors import ExitCode, say
from vila_mc.files import is_held
from vila_mc.observe.history import End, Ends, read_history
from vila_mc.observe.metrics import last_step
from vila_mc.observe.record import StartRecord
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
    has_output: bool = True
    """False where another run holds the output, whose history goes on as its own."""


class GivenUpError(Exception):
    """Another machine of the run does not start it again, so that to wait for it is vain."""

    def __init__(self, end: End) -> None:
        super().__init__(end.cause)
        self.end = end


def start_until_done(
    start: Callable[[int, Callable[[], None]], Outcome],
    output: Path,
    *,
    most: int,
    stop: StopSignals,
    deadline: float,
    pause: Callable[[float], None] = time.sleep,
) -> ExitCode:
    """Start a run, and after a fault again: every start goes on from the newest whole checkpoint.

    A user's mistake is not tried again, nor a fault that came after the same step three times in a
    row, nor after a request to stop, nor where another machine has given up.

    Args:
        start: runs to an end, given how many restarts came before, and what to call again and again
            while it waits for other machines: it raises when they have given up.
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
    ends = Ends(output)
    seen = len(read_history(output))
    for restarts in itertools.count():
        before, seen = seen, len(read_history(output))
        try:
            outcome = start(restarts, partial(_raise_if_given_up, output, before))
        except GivenUpError as given_up:
            host, code = given_up.end.host, ExitCode(given_up.end.code)
            said = f"{host} has ended with {int(code)}. {given_up.end.cause}".rstrip(". ")
            say(f"error: not started again: {said}.", to_stderr=True)
            return code
        if outcome.code is ExitCode.FAULT:
            failed_after.append(last_step(output))
        seconds = min(_FIRST_PAUSE_SECONDS * 2**restarts, _LONGEST_PAUSE_SECONDS)
        has_time = time.time() + seconds < deadline
        may_help = outcome.code is ExitCode.FAULT and most > 0 and stop.code is None
        why_not = _why_not(failed_after, most) if may_help and has_time else ""
        is_last = not may_help or not has_time or bool(why_not)
        if outcome.has_output and not _is_of_another_run(output, seen):
            ends.record(outcome.code, outcome.cause, is_last=is_last)
        if not may_help:
            return outcome.code
        if not has_time:
            say("not started again: no time is left before the limit", to_stderr=True)
            return ExitCode.REQUEUE
        if why_not:
            say(f"error: not started again: {why_not}", to_stderr=True)
            return ExitCode.FAULT
        say(f"restart {restarts + 1} of {most} in {seconds:.0f} s", to_stderr=True)
        with stop.waiting():
            pause(seconds)
    raise AssertionError("count() has no end")


def _why_not(failed_after: Sequence[int], most: int) -> str:
    """Why another start would not help; empty if it may.

    Args:
        failed_after: the step after which each start so far has failed.
        most: restarts in all.
    """
    if len(failed_after) > most:
        return f"{most} restarts are used up"
    if failed_after[-_AT_ONE_STEP:] == [failed_after[-1]] * _AT_ONE_STEP:
        return f"the last {_AT_ONE_STEP} starts all failed after step {failed_after[-1]}"
    return ""


def _is_of_another_run(output: Path, seen: int) -> bool:
    """Whether a start that has ended never had its output, which another run holds.

    Args:
        output: of the run.
        seen: events of its history when the start began.
    """
    has_begun = any(isinstance(event, StartRecord) for event in read_history(output)[seen:])
    return not has_begun and output.is_dir() and is_held(output)


def _raise_if_given_up(output: Path, before: int) -> None:
    """Whether a machine has ended for good since the start before this one.

    Args:
        output: of the run.
        before: events of its history when that start began.
    """
    for event in read_history(output)[before:]:
        if isinstance(event, End) and event.is_last and event.code in set(ExitCode):
            raise GivenUpError(event)

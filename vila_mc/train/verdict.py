"""Which rank ended a run, and why: never one that only noticed."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.errors import EXIT_INTERRUPTED, EXIT_OK
from vila_mc.processes import usual_cause
from vila_mc.train.rank_status import Ending, Heartbeat

FROZEN_SECONDS = 10.0
"""A rank that has not written a heartbeat for so long does not run; one is due every second."""


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How one rank of this machine ended, as its launcher saw it."""

    rank: int
    exit_code: int
    """Negative for the number of a signal."""
    time: float
    """When the launcher noticed."""
    was_ended: bool = False
    """Whether the launcher ended it, because another had failed."""
    was_frozen: bool = False
    """Whether it was stopped, as by SIGSTOP, when another had failed."""
    heartbeat: Heartbeat | None = None
    ending: Ending | None = None

    def last_sign(self) -> Heartbeat | Ending | None:
        """The last that is known of where it was."""
        return self.ending or self.heartbeat

    def is_failure(self) -> bool:
        """Whether it makes the others' work void."""
        return self.exit_code not in (EXIT_OK, EXIT_INTERRUPTED)

    def noticed_only(self) -> bool:
        """Whether all it has to report is that it lost another rank, or was ended."""
        return self.was_ended or (self.ending is not None and self.ending.cause == "lost")


def cause_of(ends: Sequence[RankEnd], other_machines: bool = False) -> str:
    """One clause on what ended the run.

    Args:
        ends: of every rank of this machine; at least one has failed.
        other_machines: whether ranks of other machines take part.
    """
    failed = [end for end in ends if end.is_failure()]
    started = min(end.ending.time if end.ending else end.time for end in failed)
    frozen = [end for end in ends if _is_frozen(end, started)]
    # A watchdog aborts ranks that wait for a frozen one; any other signal comes from outside.
    abort = -signal.SIGABRT
    killed = [
        end
        for end in failed
        if end.exit_code < 0 and not end.was_ended and not (frozen and end.exit_code == abort)
    ]
    if killed:
        end = min(killed, key=lambda end: end.time)
        name, cause = signal.Signals(-end.exit_code).name, usual_cause(-end.exit_code)
        often = f" (most often {cause})" if cause else ""
        return f"rank {end.rank} was killed by {name} at {_clock(end.time)}{_where(end)}{often}"
    if frozen:
        end = min(frozen, key=lambda end: end.heartbeat.time if end.heartbeat else 0.0)
        since = f" since {_clock(end.heartbeat.time)}" if end.heartbeat else ""
        return f"rank {end.rank} has stood still{since}{_where(end)}{_waiting(ends, end)}"
    faults = [end for end in failed if not end.noticed_only()]
    if faults:
        end = min(faults, key=lambda end: end.ending.time if end.ending else end.time)
        said = f" ({end.ending.message})" if end.ending and end.ending.message else ""
        return f"rank {end.rank} ended with exit code {end.exit_code}{said}"
    return _nobody_failed(ends, other_machines)


def _nobody_failed(ends: Sequence[RankEnd], other_machines: bool) -> str:
    """All that ended did so because they had lost another."""
    away = [end for end in ends if end.was_ended and end.heartbeat and not end.heartbeat.collective]
    if away:
        end = min(away, key=lambda end: end.heartbeat.since if end.heartbeat else 0.0)
        assert end.heartbeat is not None
        since = _clock(end.heartbeat.since)
        return f"rank {end.rank} did not come on since {since}{_where(end)}{_waiting(ends, end)}"
    if other_machines:
        return "contact with a rank of another machine was lost, whose launcher says why"
    first = next(end for end in ends if end.is_failure())
    said = f" ({first.ending.message})" if first.ending else ""
    return f"the ranks lost contact with each other{said}{_waiting(ends, None)}"


def _is_frozen(end: RankEnd, started: float) -> bool:
    beat = end.heartbeat
    was_silent = beat is not None and beat.time < started - FROZEN_SECONDS
    return end.was_frozen or (end.was_ended and was_silent)


def _waiting(ends: Sequence[RankEnd], culprit: RankEnd | None) -> str:
    waits = [
        f"rank {end.rank} waited in {sign.where()}"
        for end in ends
        if end is not culprit and (sign := end.last_sign()) and sign.collective
    ]
    more = f" and {len(waits) - 1} more ranks" if len(waits) > 1 else ""
    return f"; {waits[0]}{more}" if waits else ""


def _where(end: RankEnd) -> str:
    sign = end.last_sign()
    return f", last seen in {sign.where()}" if sign else ""


def _clock(monotonic: float) -> str:
    """The time of day of a moment."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + monotonic))

"""Which rank ended a run, and why: never one that only noticed."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.errors import ExitCode
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
        return self.exit_code not in (ExitCode.OK, ExitCode.INTERRUPTED)

    def noticed_only(self) -> bool:
        """Whether all it has to report is that it lost another rank, or was ended."""
        return self.was_ended or (self.ending is not None and self.ending.cause == "lost")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ended a run."""

    cause: str
    """One clause, for people."""
    rank: int | None = None
    """The one that failed; None if it is on another machine or not known."""
    is_hang: bool = False
    """Whether ranks waited until their patience ended."""


def verdict_of(ends: Sequence[RankEnd], other_machines: bool = False) -> Verdict:
    """What ended the run.

    Args:
        ends: of every rank of this machine; at least one has failed.
        other_machines: whether ranks of other machines take part.
    """
    failed = [end for end in ends if end.is_failure()]
    started = min(end.ending.time if end.ending else end.time for end in failed)
    frozen = [end for end in ends if _is_frozen(end, started)]
    away = _away(ends)
    killed = [
        end
        for end in failed
        if end.exit_code < 0 and not end.was_ended and not _is_watchdogs(end, frozen, away)
    ]
    if killed:
        end = min(killed, key=lambda end: end.time)
        name, cause = signal.Signals(-end.exit_code).name, usual_cause(-end.exit_code)
        often = f" (most often {cause})" if cause else ""
        what = f"was killed by {name} at {_clock(end.time)}{_where(end)}{often}"
        return Verdict(f"rank {end.rank} {what}", end.rank)
    if frozen:
        end = min(frozen, key=lambda end: end.heartbeat.time if end.heartbeat else 0.0)
        since = f" since {_clock(end.heartbeat.time)}" if end.heartbeat else ""
        what = f"has stood still{since}{_where(end)}{_waiting(ends, end)}"
        return Verdict(f"rank {end.rank} {what}", end.rank, is_hang=True)
    faults = [end for end in failed if end.exit_code > 0 and not end.noticed_only()]
    if faults:
        end = min(faults, key=lambda end: end.ending.time if end.ending else end.time)
        said = f" ({end.ending.message})" if end.ending and end.ending.message else ""
        return Verdict(f"rank {end.rank} ended with exit code {end.exit_code}{said}", end.rank)
    return _nobody_failed(ends, away, other_machines)


def _is_watchdogs(end: RankEnd, frozen: Sequence[object], away: Sequence[object]) -> bool:
    """Whether a watchdog aborted a rank that waited for another; else it came from outside."""
    waited = end.heartbeat is not None and end.heartbeat.collective
    return end.exit_code == -signal.SIGABRT and bool(frozen or (waited and away))


def _away(ends: Sequence[RankEnd]) -> list[tuple[RankEnd, Heartbeat]]:
    """Ranks that ran until we ended them, and waited for nobody, with where that was."""
    return [
        (end, end.heartbeat)
        for end in ends
        if end.was_ended and end.heartbeat and not end.heartbeat.collective
    ]


def _nobody_failed(
    ends: Sequence[RankEnd], away: Sequence[tuple[RankEnd, Heartbeat]], other_machines: bool
) -> Verdict:
    """All that ended did so because they had lost another."""
    if away:
        end, beat = min(away, key=lambda pair: pair[1].since)
        what = f"did not come on since {_clock(beat.since)}{_where(end)}{_waiting(ends, end)}"
        return Verdict(f"rank {end.rank} {what}", end.rank, is_hang=True)
    if other_machines:
        cause = "contact with a rank of another machine was lost, whose launcher says why"
        return Verdict(cause, is_hang=_patience_ended(ends))
    first = next(end for end in ends if end.is_failure())
    said = f" ({first.ending.message})" if first.ending else ""
    cause = f"the ranks lost contact with each other{said}{_waiting(ends, None)}"
    return Verdict(cause, is_hang=True)


def _patience_ended(ends: Sequence[RankEnd]) -> bool:
    """Whether a rank was left waiting, not hung up on: gloo says so, NCCL's watchdog aborts."""
    return any(
        end.exit_code == -signal.SIGABRT
        or (end.ending is not None and "timed out" in end.ending.message.lower())
        for end in ends
    )


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

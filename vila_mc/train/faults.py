"""Stopping on request. No torch: it must load at once."""

import math
import signal
import time
from collections.abc import Mapping
from types import FrameType

from vila_mc.config.train import TrainConfig
from vila_mc.errors import ExitCode
from vila_mc.processes import leave_closed_terminal, listened_stop_signals

DEADLINE = "VILA_MC_DEADLINE"
"""Environment variable: when a run should stop and save, in seconds since the epoch."""
_SLURM_END = "SLURM_JOB_END_TIME"


def code_of_signal(number: int) -> ExitCode:
    """How a run ends that a signal asks to stop: Ctrl-C and a closed terminal are a person's."""
    is_persons = number in (signal.SIGINT, signal.SIGHUP)
    return ExitCode.INTERRUPTED if is_persons else ExitCode.REQUEUE


def deadline_of(config: TrainConfig, environment: Mapping[str, str], now: float) -> float:
    """When a run that starts ``now`` should stop and save, in seconds since the epoch; inf: never.

    The earlier of ``train.time_limit_minutes`` and the end of SLURM's job, less
    ``train.time_margin_minutes``; what our launcher has reckoned so already, if it did. An end of a
    job that lies in the past is another job's, left over in the environment.
    """
    if DEADLINE in environment:
        return float(environment[DEADLINE])
    limit = config.time_limit_minutes
    ends = math.inf if limit is None else now + 60 * limit
    slurm = environment.get(_SLURM_END, "")
    if slurm.isascii() and slurm.isdecimal() and int(slurm) > now:
        ends = min(ends, float(slurm))
    return ends - 60 * config.time_margin_minutes


class StopRequest:
    """What this rank is asked: to stop, by a signal or by the clock. The loop saves and ends then.

    Args:
        deadline: when the clock asks, in seconds since the epoch.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        self.code: ExitCode | None = None
        """What the run is to end with, once the request was made. A person's comes before a
        scheduler's."""

    @property
    def was_made(self) -> bool:
        """Whether the run should stop now."""
        if self.code is None and time.time() >= self._deadline:
            self.code = ExitCode.REQUEUE
        return self.code is not None

    def make(self, code: ExitCode) -> None:
        """Ask for the run to end with ``code``."""
        if self.code is not ExitCode.INTERRUPTED:
            self.code = code

    def listen(self) -> None:
        """Take over the stop signals for the rest of the process: there is something to save."""
        for number in listened_stop_signals():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.make(code_of_signal(number))
        if number == signal.SIGHUP:
            leave_closed_terminal()


def end_at_once_when_stopped() -> None:
    """Let stop signals end the process, as long as it has nothing to save.

    A rank that starts up waits for others, and would not look at a request before they all come.
    """
    for number in listened_stop_signals():
        signal.signal(number, signal.SIG_DFL)

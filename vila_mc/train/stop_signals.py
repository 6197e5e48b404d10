"""How the launcher takes requests to stop, from its first moment to its last."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from vila_mc.errors import ExitCode, say
from vila_mc.processes import leave_closed_terminal, listened_stop_signals
from vila_mc.train.faults import code_of_signal
from vila_mc.train.sayings import TRAINING, Sayings

_ONE_REQUEST_SECONDS = 1.0
"""Signals that come within this time are one request: a terminal and a wrapper both send it."""
_SENT = {ExitCode.INTERRUPTED: signal.SIGINT, ExitCode.REQUEUE: signal.SIGTERM}


class StoppedError(BaseException):
    """A request to stop came while nothing ran that had to be told. No fault, as KeyboardInterrupt
    is none."""


class Receiver(Protocol):
    """Processes that can be told."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each."""


class StopSignals:
    """While active, passes requests to stop on to the ranks; a second Ctrl-C ends them at once.

    No other signal does: a scheduler warns with one and tells with another, and what a run saves
    between the two must not be lost.

    Args:
        sayings: what a person is told of it.
    """

    def __init__(self, sayings: Sayings = TRAINING) -> None:
        self.sayings = sayings
        self.code: ExitCode | None = None
        """What the run is to end with, once a request was made."""
        self.was_cut_short = False
        self._first_interrupt = math.inf
        self._ranks: Receiver | None = None
        self._is_waiting = False

    def __enter__(self) -> "StopSignals":
        self._previous = {
            number: signal.signal(number, self._on_signal) for number in listened_stop_signals()
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While active there are no ranks, and a request ends whatever is waited for.

        Raises:
            StoppedError: at the moment of the request, or at once if it came before.
        """
        self._is_waiting = True
        try:
            if self.code is not None:
                raise StoppedError
            yield
        finally:
            self._is_waiting = False

    @contextlib.contextmanager
    def passed_to(self, ranks: Receiver) -> Iterator[None]:
        """While active, send requests to these ranks, also one that came before."""
        self._ranks = ranks
        try:
            if self.code is not None:
                ranks.send(signal.SIGKILL if self.was_cut_short else _SENT[self.code])
            yield
        finally:
            self._ranks = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        now, code = time.monotonic(), code_of_signal(number)
        if self.code is None and self._is_waiting:
            self.code = code
            raise StoppedError
        if self.code is None and self.sayings.stopping:
            say(
                f"stopping: {self.sayings.stopping}"
                + "; Ctrl-C again ends at once, without" * (number == signal.SIGINT),
                to_stderr=True,
            )
        if self.code is not ExitCode.INTERRUPTED:
            self.code = code
        if number == signal.SIGINT:
            self._first_interrupt = min(self._first_interrupt, now)
            if now > self._first_interrupt + _ONE_REQUEST_SECONDS:
                self._end_at_once()
                return
        if self._ranks is not None:
            self._ranks.send(_SENT[self.code])

    def _end_at_once(self) -> None:
        if not self.was_cut_short:
            kept = f"; {self.sayings.kept}, if there is any" if self.sayings.kept else ""
            say(f"ended at once{kept}", to_stderr=True)
        self.was_cut_short = True
        if self._ranks is not None:
            self._ranks.send(signal.SIGKILL)

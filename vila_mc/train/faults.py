"""Stopping on request. No torch: it must load at once."""

import signal
from types import FrameType

from vila_mc.processes import leave_closed_terminal, listened_stop_signals


class StopRequest:
    """Becomes true when the process is asked to stop; the loop then saves and ends."""

    def __init__(self) -> None:
        self.was_made = False

    def listen(self) -> None:
        """Take over the stop signals for the rest of the process: there is something to save."""
        for number in listened_stop_signals():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.was_made = True
        if number == signal.SIGHUP:
            leave_closed_terminal()


def end_at_once_when_stopped() -> None:
    """Let stop signals end the process, as long as it has nothing to save.

    A rank that starts up waits for others, and would not look at a request before they all come.
    """
    for number in listened_stop_signals():
        signal.signal(number, signal.SIG_DFL)

"""Stopping on request, and ending when the launcher dies. No torch: it must load at once."""

import ctypes
import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the cluster's notice, and the usual advance warning of SLURM (--signal=USR1)."""

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Becomes true when the process is asked to stop; the loop then saves and ends."""

    def __init__(self) -> None:
        self.was_made = False

    def listen(self) -> None:
        """Take over the stop signals for the rest of the process: there is something to save."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.was_made = True


def end_at_once_when_stopped() -> None:
    """Let stop signals end the process, as long as it has nothing to save.

    A rank that starts up waits for others, and would not look at a request before they all come.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def end_with_launcher(launcher: int | None = None) -> None:
    """Ask the kernel to send SIGTERM to this process when its parent dies.

    Without it, a launcher that is killed with SIGKILL leaves its ranks running.

    Args:
        launcher: process id of the parent, where it is known: it may be dead already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if launcher is not None and os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGTERM)

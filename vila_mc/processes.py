"""Processes that this one starts, which do not outlive it. No torch: it must load at once."""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import stat
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Ctrl-C, the cluster's notice, a terminal that closes, and advance warnings of schedulers."""

STORE_FILE = "VILA_MC_STORE_FILE"
"""Environment variable: the file through which the ranks of one machine find each other."""
STORE_LISTENER = "VILA_MC_STORE_LISTENER"
"""Environment variable: the descriptor of the socket where rank 0 serves others; -1 for them."""
RESTARTS_OF_TORCHRUN = "TORCHELASTIC_RESTART_COUNT"
"""Environment variable of torchrun: how often it has started the ranks again."""

_PR_SET_PDEATHSIG = 1
_USUAL_CAUSES = {
    signal.SIGBUS: "a file that it had mapped was cut, or the disk of one failed",
    signal.SIGKILL: "memory ran out",
}


def listened_stop_signals() -> tuple[signal.Signals, ...]:
    """The stop signals that mean something here: under nohup a terminal that closes does not."""
    is_deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (is_deaf and number == signal.SIGHUP))


def leave_closed_terminal() -> None:
    """Write into nothing where standard output or error is a terminal that is closed.

    A write there would be an error, and cost a run what it still has to save.
    """
    for descriptor in (1, 2):
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        if is_device and not os.isatty(descriptor):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, descriptor)
            os.close(nothing)


def usual_cause(number: int) -> str | None:
    """What most often makes the system send a signal; None if nothing does."""
    return _USUAL_CAUSES.get(signal.Signals(number))


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Ask the kernel to send a signal to this process when its parent dies.

    Without it, a parent that is killed with SIGKILL leaves its children running.

    Args:
        number: the signal.
        parent: process id of the parent, where it is known: it may be dead already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """Limits for what a stranger's program does in this process, such as a template.

    Args:
        seconds: it may take, as far as it is Python; off the main thread there is no such limit.
        num_bytes: of memory that it may add.

    Raises:
        TimeoutError: it took longer.
        MemoryError: it asked for more.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = [used + num_bytes, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    is_timed = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGALRM, _out_of_time) if is_timed else None
    resource.setrlimit(resource.RLIMIT_AS, (min(most), before[1]))
    try:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("it took too long")


def fork_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork of this process, which ends with it, whatever happens to either.

    Requests to stop are not meant for the child: the parent decides what becomes of it. The kernel
    kills it when the thread that called this ends. ``work`` must touch neither CUDA nor locks that
    other threads may hold.

    Returns:
        The child's process id, to be waited for. Its exit code is 0, or 1 if ``work`` raised.
    """
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python warns of forks while there are threads; work has nothing to do with theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _live(work, parent)
    return child


def _live(work: Callable[[], None], parent: int) -> None:
    """The whole life of the child."""
    code = 1
    try:
        # Ctrl-C reaches it as well, and a cluster's notice goes to all processes of a job.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(signal.SIGKILL, parent)
        # What the parent leaves is not the child's to destroy, nor to copy by looking at it.
        gc.freeze()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing that the parent has registered for its own end

"""Processes that end with the one that forked them."""

import gc
import os
import pty
import signal
import time

import psutil
import pytest

from vila_mc.processes import STOP_SIGNALS, fork_child, leave_closed_terminal


def _exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_exit_code_tells_of_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(fork_child(lambda: None)) == 0
    assert _exit_code(fork_child(lambda: [][0])) == 1
    assert "IndexError" in capfd.readouterr().err


def test_a_child_is_not_asked_to_stop_nor_collects_what_is_not_its_own() -> None:
    told, tell = os.pipe()

    def work() -> None:
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        os.write(tell, str(gc.get_freeze_count() > 0).encode())

    assert _exit_code(fork_child(work)) == 0
    assert os.read(told, 10) == b"True"


def test_a_child_ends_with_its_parent() -> None:
    told, tell = os.pipe()
    parent = fork_child(lambda: (os.write(tell, b"%d" % fork_child(signal.pause)), signal.pause()))
    child = int(os.read(told, 20))
    os.kill(parent, signal.SIGKILL)
    assert _exit_code(parent) == -signal.SIGKILL
    until = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < until:
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return  # nobody waits for orphans in some containers
        time.sleep(0.005)
    assert not psutil.pid_exists(child)


@pytest.mark.parametrize("is_closed", [True, False])
def test_what_is_written_to_a_closed_terminal_is_lost_and_no_error(is_closed: bool) -> None:
    terminal, end = pty.openpty()

    def work() -> None:
        os.dup2(end, 1)
        os.close(end)
        if is_closed:
            os.close(terminal)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(1, b"x")
        leave_closed_terminal()
        os.write(1, b"hello")

    child = fork_child(work)
    os.close(end)
    if is_closed:
        os.close(terminal)
    assert _exit_code(child) == 0
    if not is_closed:
        assert os.read(terminal, 10) == b"hello"
        os.close(terminal)

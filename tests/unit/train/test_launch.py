"""What the launcher makes of how its ranks ended, and of requests to stop."""

import os
import signal
from typing import Any

import pytest

from vila_mc.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from vila_mc.processes import STOP_SIGNALS, listened_stop_signals
from vila_mc.train import launch
from vila_mc.train.launch import _explain, _ForwardStop
from vila_mc.train.rank_status import Ending
from vila_mc.train.verdict import RankEnd


@pytest.mark.parametrize(
    ("exit_codes", "was_stopped", "code", "line"),
    [
        ((0, 0), False, EXIT_OK, ""),
        ((130, 130), True, EXIT_INTERRUPTED, "stopped and saved; the same command"),
        ((130, 0), False, EXIT_INTERRUPTED, "stopped and saved"),  # the cluster told a rank
        ((-2, -2), True, EXIT_INTERRUPTED, "stopped before the first step"),
        ((2, 1), False, EXIT_USER_ERROR, "error: model.x is 3; use 2."),
        ((1, 1), False, EXIT_FAULT, "error: rank 0 ended with exit code 1; the other ranks"),
        ((0, -9), False, EXIT_FAULT, "error: rank 1 was killed by SIGKILL at "),
    ],
)
def test_exit_code_and_line(
    exit_codes: tuple[int, int],
    was_stopped: bool,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = Ending(0.0, "config.model", "", "user", "model.x is 3; use 2.")
    ends = [
        RankEnd(rank, exit_code, time=1.0, ending=said if exit_code == EXIT_USER_ERROR else None)
        for rank, exit_code in enumerate(exit_codes)
    ]
    assert _explain(ends, was_stopped=was_stopped, other_machines=False) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == bool(line)


class _FakeRanks:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_request_to_stop_is_passed_on_as_one(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = _FakeRanks()
    with _ForwardStop() as forward:
        os.kill(os.getpid(), number)  # before there are ranks
        forward.to(ranks)
        os.kill(os.getpid(), number)
    assert ranks.sent == [signal.SIGINT, signal.SIGINT]
    assert forward.was_used
    more = "; Ctrl-C again ends at once, without" if number == signal.SIGINT else ""
    assert (
        capsys.readouterr().err
        == f"stopping: every rank finishes its step or validation, and saves{more}\n"
    )


@pytest.mark.parametrize(
    ("signals", "ends"),
    [
        ([(0.0, signal.SIGINT), (0.2, signal.SIGINT)], False),  # one request, sent twice
        ([(0.0, signal.SIGINT), (5.0, signal.SIGINT)], True),
        ([(0.0, signal.SIGUSR1), (5.0, signal.SIGTERM), (9.0, signal.SIGTERM)], False),
        ([(0.0, signal.SIGTERM), (5.0, signal.SIGINT)], False),
    ],
)
def test_a_second_ctrl_c_ends_at_once(
    signals: list[tuple[float, signal.Signals]],
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks, now = _FakeRanks(), [0.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    with _ForwardStop() as forward:
        forward.to(ranks)
        for after, number in signals:
            now[0] = after
            os.kill(os.getpid(), number)
    assert ranks.sent[0] == signal.SIGINT
    assert ranks.sent[-1] == (signal.SIGKILL if ends else signal.SIGINT)
    assert forward.was_cut_short == ends
    assert ("ended at once" in capsys.readouterr().err) == ends


def test_a_terminal_that_closes_means_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in listened_stop_signals()
        with _ForwardStop() as forward:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not forward.was_used
    finally:
        signal.signal(signal.SIGHUP, before)

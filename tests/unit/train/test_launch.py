"""What the launcher makes of how its ranks ended, and of requests to stop."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from vila_mc.errors import ExitCode
from vila_mc.processes import STOP_SIGNALS, listened_stop_signals
from vila_mc.train import stop_signals
from vila_mc.train.launch import _explain
from vila_mc.train.rank_status import Cause, Ending, Heartbeat
from vila_mc.train.restarts import Outcome
from vila_mc.train.sayings import Sayings
from vila_mc.train.stop_signals import StoppedError, StopSignals
from vila_mc.train.verdict import RankEnd

HEARD = "stopping: every rank finishes its step or validation, and saves"


@pytest.mark.parametrize(
    ("exit_codes", "stop_code", "code", "line"),
    [
        ((0, 0), None, ExitCode.OK, ""),
        ((130, 130), ExitCode.INTERRUPTED, ExitCode.INTERRUPTED, "stopped and saved; the same"),
        ((85, 85), ExitCode.REQUEUE, ExitCode.REQUEUE, "stopped and saved; the same command"),
        ((85, 0), None, ExitCode.REQUEUE, "stopped and saved"),  # the cluster told a rank
        ((-2, -2), ExitCode.INTERRUPTED, ExitCode.INTERRUPTED, "stopped before the first step"),
        ((-15, -15), ExitCode.REQUEUE, ExitCode.REQUEUE, "stopped before the first step"),
        ((2, 1), None, ExitCode.USER_ERROR, "error: model.x is 3; use 2."),
        ((2, 1), ExitCode.REQUEUE, ExitCode.USER_ERROR, "error: model.x is 3; use 2."),
        ((1, 1), None, ExitCode.FAULT, "error: rank 0 ended with exit code 1; the other ranks"),
        ((1, 0), ExitCode.REQUEUE, ExitCode.FAULT, "error: rank 0 ended with exit code 1"),
        ((0, -9), None, ExitCode.FAULT, "error: rank 1 was killed by SIGKILL at "),
    ],
)
def test_exit_code_and_line(
    exit_codes: tuple[int, int],
    stop_code: ExitCode | None,
    code: int,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = Ending(0.0, "config.model", "", "user", "model.x is 3; use 2.")
    ends = [
        RankEnd(rank, exit_code, time=1.0, ending=said if exit_code == 2 else None)
        for rank, exit_code in enumerate(exit_codes)
    ]
    stop = StopSignals()
    stop.code = stop_code
    outcome = _explain(ends, stop=stop, other_machines=False, directory=tmp_path)
    assert outcome.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == bool(line)


@pytest.mark.parametrize("cause", ["user", "held"])
def test_an_output_of_another_run_is_left_alone(cause: Cause, tmp_path: Path) -> None:
    said = Ending(0.0, "train.own_output", "", cause, "another run is writing there.")
    ends = [RankEnd(0, 2, time=1.0, ending=said)]
    outcome = _explain(ends, stop=StopSignals(), other_machines=False, directory=tmp_path)
    assert outcome == Outcome(ExitCode.USER_ERROR, said.message, has_output=cause == "user")


def test_other_work_has_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Sayings(stopping="", stopped="", before_work="", kept="answers are in a.jsonl")
    stop = StopSignals(said)
    ends = [RankEnd(0, 0, time=1.0), RankEnd(1, -9, time=1.0)]
    _explain(ends, stop=stop, other_machines=False, directory=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; the other ranks were stopped. Answers are in a.jsonl.")
    stop.code = ExitCode.INTERRUPTED
    ends = [RankEnd(0, -2, time=1.0), RankEnd(1, -2, time=1.0)]
    outcome = _explain(ends, stop=stop, other_machines=False, directory=tmp_path)
    assert (outcome.code, capsys.readouterr().err) == (ExitCode.INTERRUPTED, "")


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
    with StopSignals() as stop:
        os.kill(os.getpid(), number)  # before there are ranks
        with stop.passed_to(ranks):
            os.kill(os.getpid(), number)
    is_persons = number in (signal.SIGINT, signal.SIGHUP)
    assert ranks.sent == [signal.SIGINT if is_persons else signal.SIGTERM] * 2
    assert stop.code is (ExitCode.INTERRUPTED if is_persons else ExitCode.REQUEUE)
    more = "; Ctrl-C again ends at once, without" if number == signal.SIGINT else ""
    assert capsys.readouterr().err == f"{HEARD}{more}\n"


def test_a_person_comes_before_a_scheduler() -> None:
    with StopSignals() as stop:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert stop.code is ExitCode.INTERRUPTED


def test_while_nothing_runs_a_request_ends_what_is_waited_for() -> None:
    with StopSignals() as stop:
        with pytest.raises(StoppedError), stop.waiting():
            os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StoppedError), stop.waiting():
            raise AssertionError("it was asked before")
    assert stop.code is ExitCode.REQUEUE


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
    monkeypatch.setattr(stop_signals.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    with StopSignals() as stop, stop.passed_to(ranks):
        for after, number in signals:
            now[0] = after
            os.kill(os.getpid(), number)
    assert signal.SIGKILL not in ranks.sent[:-1]
    assert (ranks.sent[-1] == signal.SIGKILL) == ends
    assert stop.was_cut_short == ends
    assert ("ended at once" in capsys.readouterr().err) == ends


def test_a_terminal_that_closes_means_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in listened_stop_signals()
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.code is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hang_shows_every_stack_and_the_missing_rank_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rank-0.stacks").write_text('File "loop.py", line 3 in fit\n' * 200)
    waits = Ending(900.0, "train.step", "all_reduce", "lost", "Timed out waiting 1000ms for recv")
    still = Heartbeat(100.0, "data.next", "", 90.0)
    ends = [
        RankEnd(0, 1, 900.0, ending=waits),
        RankEnd(1, -9, 901.0, was_ended=True, was_frozen=True, heartbeat=still),
    ]
    outcome = _explain(ends, stop=StopSignals(), other_machines=False, directory=tmp_path)
    assert outcome.code is ExitCode.FAULT
    assert outcome.cause.startswith("rank 1 has stood still since ")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "stacks of rank 1, which the others waited for, in data.next:",
        "  it could not say",
        "stacks of rank 0 in all_reduce of train.step:",
    ]
    assert len(lines) < 100
    assert (
        lines[-1] == f"error: {outcome.cause}; the other ranks were stopped. Checkpoints are "
        "whole: the same command goes on from the newest one."
    )

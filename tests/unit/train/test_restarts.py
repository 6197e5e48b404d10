"""When a run is started again by itself, and when not."""

import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.records import start_record
from vila_mc.errors import ExitCode
from vila_mc.files import Lock
from vila_mc.observe.history import End, Ends, read_history, record_start
from vila_mc.train import restarts
from vila_mc.train.restarts import Outcome, start_until_done
from vila_mc.train.stop_signals import StoppedError, StopSignals

NOW = 1000.0
FAULT, OK = ExitCode.FAULT, ExitCode.OK


def _run(
    codes: Sequence[ExitCode],
    steps: Sequence[int],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int = 9,
    deadline: float = math.inf,
) -> tuple[ExitCode, list[int], list[float]]:
    """The last code, how many restarts each start was told of, and the pauses between."""
    told: list[int] = []
    pauses: list[float] = []

    def start(number: int, _: Callable[[], None]) -> Outcome:
        told.append(number)
        return Outcome(codes[number], "why" if codes[number] is FAULT else "")

    monkeypatch.setattr(restarts, "last_step", lambda _: steps[len(told) - 1])
    monkeypatch.setattr(restarts.time, "time", lambda: NOW)  # type: ignore[attr-defined]
    with StopSignals() as stop:
        code = start_until_done(
            start, output, most=most, stop=stop, deadline=deadline, pause=pauses.append
        )
    return code, told, pauses


@pytest.mark.parametrize(
    ("codes", "steps", "most", "deadline", "starts", "said"),
    [
        pytest.param([FAULT, FAULT, OK], [5, 5], 9, math.inf, 3, "", id="until it is done"),
        pytest.param([FAULT], [5], 0, math.inf, 1, "", id="not asked for"),
        pytest.param([FAULT] * 3, [5, 7, 9], 2, math.inf, 3, "2 restarts are used up", id="most"),
        pytest.param(
            [FAULT] * 5, [3, 7, 7, 7], 9, math.inf, 4, "3 starts all failed after step 7", id="same"
        ),
        pytest.param([FAULT] * 5 + [OK], [7, 7, 8, 7, 7], 9, math.inf, 6, "", id="not in a row"),
        pytest.param([ExitCode.USER_ERROR], [], 9, math.inf, 1, "", id="a mistake"),
        pytest.param([ExitCode.REQUEUE], [], 9, math.inf, 1, "", id="stopped by a scheduler"),
        pytest.param([ExitCode.INTERRUPTED], [], 9, math.inf, 1, "", id="stopped by a person"),
        pytest.param([FAULT], [5], 9, NOW + 1, 1, "no time is left", id="its time is over"),
    ],
)
def test_what_is_started_again(
    codes: list[ExitCode],
    steps: list[int],
    most: int,
    deadline: float,
    starts: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, told, _ = _run(codes, steps, tmp_path, monkeypatch, most, deadline)
    lacks_time_alone = deadline < math.inf
    assert code is (ExitCode.REQUEUE if lacks_time_alone else codes[starts - 1])
    assert told == list(range(starts))
    assert said in capsys.readouterr().err
    ends = [event for event in read_history(tmp_path) if isinstance(event, End)]
    assert [(end.code, end.cause) for end in ends] == [
        (one, "why" if one is FAULT else "") for one in codes[:starts]
    ]


def test_pauses_double_up_to_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = _run([FAULT] * 12, list(range(12)), tmp_path, monkeypatch, most=11)[2]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_start_that_never_had_its_output_leaves_no_end(has_begun: bool, tmp_path: Path) -> None:
    """It was stopped while it waited for the run that holds it."""
    lock = Lock(tmp_path)

    def begin(*_: Any) -> Outcome:
        if has_begun:
            record_start(tmp_path, start_record())
        return Outcome(ExitCode.INTERRUPTED)

    with StopSignals() as stop:
        start_until_done(begin, tmp_path, most=1, stop=stop, deadline=math.inf)
    lock.release()
    assert len([one for one in read_history(tmp_path) if isinstance(one, End)]) == has_begun


def test_nothing_is_written_where_another_run_is(tmp_path: Path) -> None:
    outcome = Outcome(ExitCode.USER_ERROR, "another run is writing there.", has_output=False)
    with StopSignals() as stop:
        code = start_until_done(lambda *_: outcome, tmp_path, most=1, stop=stop, deadline=math.inf)
    assert code is ExitCode.USER_ERROR
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGUSR1, ExitCode.REQUEUE)],
)
def test_a_request_between_two_starts_ends_it(
    number: signal.Signals, code: ExitCode, tmp_path: Path
) -> None:
    with StopSignals() as stop, pytest.raises(StoppedError):
        start_until_done(
            lambda *_: Outcome(FAULT),
            tmp_path,
            most=1,
            stop=stop,
            deadline=math.inf,
            pause=lambda _: os.kill(os.getpid(), number),
        )
    assert stop.code is code


def test_a_fault_after_a_request_is_the_end(tmp_path: Path) -> None:
    def start(*_: object) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        return Outcome(FAULT)

    with StopSignals() as stop:
        code = start_until_done(start, tmp_path, most=3, stop=stop, deadline=math.inf)
    assert code is FAULT


def test_a_machine_that_has_given_up_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ends(tmp_path).record(ExitCode.USER_ERROR, "of an earlier run")
    looks: list[int] = []

    def start(number: int, look: Callable[[], None]) -> Outcome:
        look()
        looks.append(number)
        # The other machine starts again after the first fault, and not after its mistake.
        Ends(tmp_path).record(FAULT, "died", is_last=False)
        if number == 1:
            Ends(tmp_path).record(ExitCode.USER_ERROR, "an image is damaged")
        return Outcome(FAULT)

    with StopSignals() as stop:
        code = start_until_done(
            start, tmp_path, most=9, stop=stop, deadline=math.inf, pause=lambda _: None
        )
    assert (code, looks) == (ExitCode.USER_ERROR, [0, 1])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: not started again: ")
    assert said.endswith(" has ended with 2. an image is damaged.")

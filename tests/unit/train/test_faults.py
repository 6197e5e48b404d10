"""Requests to stop."""

import math
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.tiny import tiny_run
from vila_mc.errors import ConfigError, ExitCode
from vila_mc.processes import STOP_SIGNALS
from vila_mc.train.faults import DEADLINE, StopRequest, deadline_of, end_at_once_when_stopped


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the handlers of this process back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_interrupts_nothing(
    number: signal.Signals, handlers: None
) -> None:
    stop = StopRequest()
    stop.listen()
    assert not stop.was_made
    assert signal.getsignal(number) is not signal.SIG_DFL  # which would end the tests
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # an impatient second Ctrl-C changes nothing
    assert stop.was_made
    is_persons = number == signal.SIGINT
    assert stop.code is (ExitCode.INTERRUPTED if is_persons else ExitCode.REQUEUE)


def test_nothing_is_taken_over_before_listening() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    StopRequest()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_rank_that_starts_up_ends_at_once(handlers: None) -> None:
    StopRequest().listen()
    end_at_once_when_stopped()
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_DFL}


def test_a_persons_request_comes_before_a_schedulers() -> None:
    stop = StopRequest()
    for code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.REQUEUE):
        stop.make(code)
    assert stop.code is ExitCode.INTERRUPTED


@pytest.mark.parametrize("left", [60.0, -1.0])
def test_the_clock_asks_as_a_scheduler_does(left: float) -> None:
    stop = StopRequest(time.time() + left)
    assert stop.was_made == (left < 0)
    assert stop.code is (ExitCode.REQUEUE if left < 0 else None)


@pytest.mark.parametrize(
    ("options", "environment", "deadline"),
    [
        ({}, {}, math.inf),
        ({"time_limit_minutes": 30.0}, {}, 1000 + 25 * 60),
        ({"time_limit_minutes": 30.0, "time_margin_minutes": 0.5}, {}, 1000 + 29.5 * 60),
        ({}, {"SLURM_JOB_END_TIME": "9000"}, 9000 - 5 * 60),
        ({"time_limit_minutes": 30.0}, {"SLURM_JOB_END_TIME": "2000"}, 2000 - 5 * 60),
        ({"time_limit_minutes": 6.0}, {"SLURM_JOB_END_TIME": "9000"}, 1060),
        ({}, {"SLURM_JOB_END_TIME": "999"}, math.inf),  # of another job
        ({}, {"SLURM_JOB_END_TIME": "UNLIMITED"}, math.inf),
        ({"time_limit_minutes": 30.0}, {DEADLINE: "4321.5"}, 4321.5),  # reckoned by the launcher
    ],
)
def test_when_the_clock_asks(
    options: dict[str, float], environment: dict[str, str], deadline: float
) -> None:
    assert deadline_of(tiny_run(train=options).train, environment, 1000.0) == deadline


@pytest.mark.parametrize(
    "options",
    [
        {"time_limit_minutes": 0.0},
        {"time_limit_minutes": 5.0},
        {"time_margin_minutes": -1.0},
        {"time_limit_minutes": 3.0, "time_margin_minutes": 3.0},
    ],
)
def test_a_limit_that_leaves_no_time_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"train\.time_"):
        tiny_run(train=options)

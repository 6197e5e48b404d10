"""Requests to stop."""

import os
import signal
from collections.abc import Iterator

import pytest

from vila_mc.processes import STOP_SIGNALS
from vila_mc.train.faults import StopRequest, end_at_once_when_stopped


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


def test_nothing_is_taken_over_before_listening() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    StopRequest()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_rank_that_starts_up_ends_at_once(handlers: None) -> None:
    StopRequest().listen()
    end_at_once_when_stopped()
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_DFL}

"""What a person sees of a run."""

import io

import pytest

from vila_mc.flow import StepResult
from vila_mc.observe import console
from vila_mc.observe.console import StepPrinter, clock

RESULT = StepResult(
    loss=2.18341,
    grad_norm=0.9104,
    learning_rate=2e-5,
    trained_tokens=1000,
    num_images=3,
    num_samples=1024,
    filled=0.98,
    substitutes=0,
    should_stop=False,
)


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    times = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: times[0])
    return times


def test_a_line_has_fixed_order_and_units(now):
    stream = io.StringIO()
    printer = StepPrinter(5000, "align", stream)
    printer.show(120, RESULT, step_seconds=0.354, samples=1024)
    assert stream.getvalue() == (
        "align  step  120/5000  loss 2.1834  grad 0.910  lr 2.00e-05  2,893 samples/s  354 ms  "
        "left ?\n"
    )


def test_at_most_one_line_a_second_and_always_the_last(now):
    stream = io.StringIO()
    printer = StepPrinter(8, "sft", stream)
    for step in range(1, 9):
        printer.show(step, RESULT, step_seconds=0.4, samples=8)
        now[0] += 0.4
    shown = [int(line.split("step")[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert shown == [1, 4, 7, 8]


def test_the_estimate_starts_after_the_first_step_of_this_run(now):
    stream = io.StringIO()
    printer = StepPrinter(100, "sft", stream)
    now[0] += 1000.0  # loading and warming up
    printer.show(41, RESULT, step_seconds=900.0, samples=8)
    now[0] += 20.0
    printer.show(51, RESULT, step_seconds=2.0, samples=8)
    assert stream.getvalue().splitlines()[1].endswith("left 1:38")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.7, "1:00:00"), (36_061, "10:01:01")],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown

"""What a person sees of a run."""

import io

import pytest

from tests.support.records import start_record, step_record
from vila_mc.observe import console
from vila_mc.observe.console import StepPrinter, clock
from vila_mc.observe.record import StepRecord, ValidationRecord


def _record(step: int, step_ms: int, samples: int) -> StepRecord:
    return step_record(step, step_ms=step_ms, samples=samples)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    times = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: times[0])  # type: ignore[attr-defined]
    return times


def test_a_line_has_fixed_order_and_units(now: list[float]) -> None:
    stream = io.StringIO()
    printer = StepPrinter(5000, "align", stream)
    printer.write(_record(120, step_ms=354, samples=1024))
    assert stream.getvalue() == (
        "align  step  120/5000  loss 2.1834  grad 0.910  lr 2.00e-05  2,893 samples/s  "
        "2,500 tok/s/rank  8 images/s  375 TFLOP/s/rank  37.9 % MFU  354 ms  data 2 %  61.7 GiB  "
        "left ?\n"
    )


@pytest.mark.parametrize(("device", "unit"), [("NVIDIA H200", "gpu"), ("cpu", "rank")])
def test_ranks_are_called_what_they_are(now: list[float], device: str, unit: str) -> None:
    stream = io.StringIO()
    printer = StepPrinter(5000, "align", stream)
    printer.start(start_record(device=device))
    printer.write(step_record(mfu=None, tflops_per_rank=0.01234))
    assert f"  2,500 tok/s/{unit}  8 images/s  12.3 GFLOP/s/{unit}  400 ms" in stream.getvalue()


def test_a_validation_is_a_line_of_its_own_at_once(now: list[float]) -> None:
    stream = io.StringIO()
    printer = StepPrinter(500, "sft", stream)
    printer.write(_record(40, step_ms=354, samples=8))
    printer.write_validation(
        ValidationRecord(
            step=40,
            validation_loss=2.34567,
            validation_tokens=12_345,
            validation_loss_by_entry=[2.34567],
            validation_ms=1234.5,
        )
    )
    assert stream.getvalue().splitlines()[1] == (
        "sft  step  40/500  validation loss 2.3457  12,345 tokens  1,234 ms"
    )


def test_at_most_one_line_a_second_and_always_the_last(now: list[float]) -> None:
    stream = io.StringIO()
    printer = StepPrinter(8, "sft", stream)
    for step in range(1, 9):
        printer.write(_record(step, step_ms=400, samples=8))
        now[0] += 0.4
    shown = [int(line.split("step")[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert shown == [1, 4, 7, 8]


def test_the_estimate_starts_after_the_first_step_of_this_run(now: list[float]) -> None:
    stream = io.StringIO()
    printer = StepPrinter(100, "sft", stream)
    now[0] += 1000.0  # loading and warming up
    printer.write(_record(41, step_ms=900_000, samples=8))
    now[0] += 20.0
    printer.write(_record(51, step_ms=2000, samples=8))
    assert stream.getvalue().splitlines()[1].endswith("left 1:38")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.7, "1:00:00"), (36_061, "10:01:01")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown

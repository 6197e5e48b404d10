"""Where the time of a step goes, from planted spans."""

import time

import pytest
import torch

from vila_mc.observe.spans import Span, Spans
from vila_mc.observe.step_times import SharedTimes, StepTimes


def _spans(*given: tuple[str, float, float]) -> list[Span]:
    return [Span(name, start, end, {}) for name, start, end in given]


STEP = _spans(
    ("data", 0.000, 0.010),
    ("vision", 0.020, 0.030),
    ("forward-compute", 0.015, 0.045),
    ("forward-send", 0.045, 0.050),
    ("backward-compute", 0.060, 0.100),
    ("all-grads-sync", 0.101, 0.109),
    ("reduction", 0.100, 0.110),
    ("forward-backward", 0.015, 0.112),
    ("norm", 0.112, 0.115),
    ("optimizer", 0.115, 0.120),
)


def _ms(**parts: float) -> StepTimes:
    return StepTimes(**{**dict.fromkeys(StepTimes._fields, 0.0), **parts})


@pytest.mark.parametrize("has_stages", [True, False])
def test_the_parts_add_up_to_the_step(has_stages: bool) -> None:
    times = StepTimes.of(0.125, STEP, has_stages=has_stages)
    idle = 97 - 30 - 40 - 10
    expected = _ms(
        step=125,
        data=10,
        vision=10,
        forward=20,
        backward=40,
        pipeline=idle if has_stages else 0,
        reduction=10,
        optimizer=5,
        norm=3,
        other=10 + (0 if has_stages else idle),
    )
    assert times == pytest.approx(expected)
    assert sum(times[1:]) == pytest.approx(times.step)


@pytest.mark.parametrize("has_stages", [True, False])
def test_who_comes_early_to_the_norm_waits_there(has_stages: bool) -> None:
    ranks = [
        _ms(step=100, forward=30, backward=40, optimizer=5, norm=20, other=5),
        _ms(step=100, forward=33, backward=52, optimizer=5, norm=4, other=6),
    ]
    shared = SharedTimes.of(ranks, has_stages=has_stages)
    assert (shared.slowest_rank, shared.slowest_busy, shared.busy) == (1, 90, 82.5)
    assert (shared.pipeline, shared.reduction) == ((8, 0) if has_stages else (0, 8))
    assert shared.optimizer == 5 + 4
    parts = ("data", "vision", "forward", "backward", "pipeline", "reduction", "optimizer", "other")
    assert sum(getattr(shared, part) for part in parts) == pytest.approx(shared.step)


def test_spans_are_taken_within_a_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    spans = Spans(torch.device("cpu"))
    with spans.span("before"):
        now[0] += 1
    spans.begin()
    with spans.span("data", samples=3):
        now[0] += 0.5
    timer = spans("forward-compute", log_level=2)
    timer.start(barrier=True)
    now[0] += 0.25
    spans("forward-compute").stop()
    now[0] += 0.125
    seconds, taken = spans.end()
    with spans.span("after"):
        now[0] += 1
    assert seconds == 0.875
    assert taken == [
        Span("data", 0.0, 0.5, {"samples": 3}),
        Span("forward-compute", 0.5, 0.75, {}),
    ]
    spans.begin()
    assert spans.end() == (0.0, [])

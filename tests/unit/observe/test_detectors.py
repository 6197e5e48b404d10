"""Every alarm rings for what was planted, once, and for nothing else."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.records import step_record
from vila_mc.config.alarms import AlarmConfig
from vila_mc.observe.alarms import Alarms
from vila_mc.observe.detectors import RankTimes
from vila_mc.observe.record import Event, StepRecord
from vila_mc.observe.step_times import StepTimes

TRACES = Path(__file__).parent / "traces"
USUAL = step_record(
    loss=2.0, grad_norm=0.5, images=64, samples=64, loss_by_entry=[2.0], step_ms=100.0
)
TIMES = StepTimes(100.0, 1.0, 0.0, 30.0, 60.0, 0.0, 0.0, 5.0, 2.0, 2.0)
Change = Callable[[int], dict[str, Any]]
"""From the number of a step to what it has other than the usual."""


def _trace(steps: int, change: Change) -> Iterator[StepRecord]:
    noise = random.Random(3)
    for step in range(1, steps + 1):
        figures: dict[str, Any] = {
            "loss": 2.0 + noise.gauss(0, 0.05),
            "grad_norm": 0.5 * noise.lognormvariate(0, 0.2),
            "step_ms": 100.0 + noise.expovariate(0.1),
        }
        yield replace(USUAL, step=step, **figures | change(step))


def _rung(records: Sequence[StepRecord], **config: Any) -> list[Event]:
    alarms = Alarms(AlarmConfig(**config), ["rank 0 (here)"], [0])
    return [event for record in records for event in alarms.after_step(record, [TIMES])]


def _at(first: int, last: int | None = None, **figures: Any) -> Change:
    return lambda step: figures if first <= step <= (last or first) else {}


PLANTED: dict[str, tuple[Change, str, int, str]] = {
    "a loss that jumps": (_at(300, loss=6.0), "loss", 300, "loss 6 is "),
    "a gradient that jumps": (_at(300, grad_norm=40.0), "grad_norm", 300, "gradient norm 40 is "),
    "steps that get slow": (
        _at(300, 600, step_ms=200.0),
        "slowdown",
        320,
        "the last 32 steps took 200 ms each",
    ),
    "a slow decline": (
        lambda step: {"step_ms": 100 * 1.002**step},
        "slowdown",
        256,
        "times as long as the",
    ),
    "images that no longer decode": (
        _at(300, 600, substitutes=3),
        "substitutes",
        327,
        "84 of 8,192 images of the last 128 steps (1.0 %)",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_planted_is_said(case: str) -> None:
    change, kind, step, message = PLANTED[case]
    events = [event for event in _rung(list(_trace(600, change))) if event.step < step + 200]
    assert [event.event for event in events] in ([kind], [kind] * 2)
    assert events[0].step == step
    assert message in events[0].message
    assert events[0].value is not None
    assert events[0].usual is not None


QUIET: dict[str, Change] = {
    "noise": lambda _: {},
    "a jump before there is a trace": _at(40, loss=9.0, grad_norm=90.0),
    "one step with a pause": _at(300, step_ms=60_000.0),
    "a loss that falls": lambda step: {"loss": 8.0 * 0.99**step + 1, "grad_norm": 5 * 0.99**step},
    "a skipped step": _at(300, loss=float("nan"), grad_norm=float("inf"), skipped=True),
    "a skipped step with a wild norm": _at(300, grad_norm=1e9, skipped=True),
    "a few images that do not decode": _at(300, 306, substitutes=1),
    "a figure that never changes": lambda _: {"loss": 0.0, "grad_norm": 0.0, "step_ms": 1.0},
}


@pytest.mark.parametrize("case", QUIET)
def test_nothing_is_said(case: str) -> None:
    assert _rung(list(_trace(600, QUIET[case]))) == []


@pytest.mark.parametrize("name", ["align", "sft"])
def test_nothing_is_said_of_the_quickstart(name: str) -> None:
    """Loss, gradient norm and time of its phases, as it ran."""
    lines = (TRACES / f"quickstart_{name}.csv").read_text().splitlines()[1:]
    records = []
    for step, line in enumerate(lines, start=1):
        loss, grad_norm, step_ms = map(float, line.split(","))
        records.append(replace(USUAL, step=step, loss=loss, grad_norm=grad_norm, step_ms=step_ms))
    assert len(records) > 400
    assert _rung(records) == []


def test_an_alarm_is_not_repeated_before_its_time() -> None:
    every_tenth = lambda step: {"loss": 9.0} if step >= 300 and step % 10 == 0 else {}  # noqa: E731
    events = _rung(list(_trace(700, every_tenth)), repeat_after=150)
    assert [event.step for event in events] == [300, 450, 600]
    assert "more" not in events[0].message
    assert "(and 14 times more since step 300)" in events[1].message


def test_a_share_of_substitutes_is_said_again_when_it_has_doubled() -> None:
    rising = lambda step: {"substitutes": 3 if step < 600 else 8} if step >= 200 else {}  # noqa: E731
    events = _rung(list(_trace(900, rising)), repeat_after=1)
    assert [event.event for event in events] == ["substitutes"] * 4
    shares = [event.value or 0 for event in events]
    assert all(after >= 2 * before for before, after in pairwise(shares))


@pytest.mark.parametrize(
    ("option", "change"),
    [("deviations", _at(300, loss=9.0)), ("slowdown", _at(300, 600, step_ms=900.0))],
)
def test_none_turns_an_alarm_off(option: str, change: Change) -> None:
    records = list(_trace(600, change))
    assert _rung(records)
    assert _rung(records, **{option: None}) == []


def _times(*passes_ms: float, peers: Sequence[int] | None = None, wait: float = 1.0) -> Any:
    peers = peers or [0] * len(passes_ms)
    return [
        RankTimes(rank, peers[rank], ms, wait if rank == 1 else 1.0, 100.0)
        for rank, ms in enumerate(passes_ms)
    ]


def _compared(*comparisons: Any, **config: Any) -> list[Event]:
    names = [f"rank {rank} (host{rank // 2}, GPU {rank % 2})" for rank in range(4)]
    alarms = Alarms(AlarmConfig(repeat_after=1, **config), names, [])
    return [
        event
        for number, times in enumerate(comparisons, start=1)
        for event in alarms.after_comparison(50 * number, times)
    ]


RANKS: dict[str, tuple[list[Any], list[tuple[str, int]]]] = {
    "all alike": ([_times(50, 51, 52, 49)] * 9, []),
    "one of four": ([_times(50, 51, 75, 49)], [("straggler", 2)]),
    "one of two": ([_times(50, 75)], [("straggler", 1)]),
    "stages with unlike work": ([_times(50, 51, 90, 92, peers=[0, 0, 1, 1])], []),
    "one of a stage": ([_times(50, 51, 140, 92, peers=[0, 0, 1, 1])], [("straggler", 2)]),
    "alone on its stage, slower than it was": (
        [_times(50, 90, peers=[0, 1])] * 5 + [_times(50, 140, peers=[0, 1])],
        [("straggler", 1)],
    ),
    "all slower than they were": (
        [_times(50, 90, peers=[0, 1])] * 5 + [_times(80, 140, peers=[0, 1])],
        [],
    ),
    "one rank": ([_times(50)] * 5 + [_times(500)], []),
    "data that come late": ([_times(50, 50, wait=30.0)], [("data_wait", 1)]),
    "data that come": ([_times(50, 50, wait=15.0)], []),
}


@pytest.mark.parametrize("case", RANKS)
def test_times_of_ranks(case: str) -> None:
    comparisons, expected = RANKS[case]
    events = _compared(*comparisons)
    assert [(event.event, event.rank) for event in events] == expected
    for event in events:
        assert event.where is not None
        assert event.where in event.message
        assert f"rank {event.rank} (host" in event.where


def test_a_straggler_is_named_with_host_and_gpu() -> None:
    (event,) = _compared(_times(50, 50, 50, 100))
    assert event.message == (
        "rank 3 (host1, GPU 1): its passes took 100.0 ms a step, 2.0 times the 50.0 ms of "
        "ranks with the same work"
    )


def test_times_of_ranks_are_means_since_the_last_comparison() -> None:
    """The first one is left out: workers, caches and compilers start in it."""
    alarms = Alarms(AlarmConfig(compare_ranks_every=4), ["rank 0 (a)", "rank 1 (b)"], [0, 0])
    events = []
    for step in range(1, 13):
        slow = 3 if step in (1, 2, 3, 4, 9, 10, 11, 12) else 1
        other = TIMES._replace(forward=slow * 30.0, backward=slow * 60.0)
        events += alarms.after_step(step_record(step), [TIMES, other])
    (event,) = events
    assert (event.step, event.event, event.rank) == (12, "straggler", 1)
    assert (event.value, event.usual) == pytest.approx((270.0, 90.0))

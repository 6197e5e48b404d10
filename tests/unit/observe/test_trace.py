"""What a trace makes of planted spans."""

from dataclasses import replace

import pytest

from tests.support.traces import arrows, require_lanes, slices
from vila_mc.observe.spans import Span
from vila_mc.observe.trace import LANES, Message, RankTrace, TracedStep, trace_of

ORDER = [(0, 0)]


def _rank(rank: int, began: float, offset: float, *spans: Span) -> RankTrace:
    step = TracedStep(7, began, 1.0, list(spans), ORDER, ORDER)
    return RankTrace(rank, f"rank {rank}: here", offset, 0.0, [step])


SENDER = _rank(
    0,
    100.0,
    0.0,
    Span("forward-compute", 0.1, 0.3, {}),
    Span("vision", 0.15, 0.2, {}),
    Span("forward-send", 0.3, 0.4, {}),  # Megatron-Core's own, which says less
    Span("message", 0.3, 0.4, {"sends": [Message(1, "forward")], "receives": []}),
    Span("norm", 0.5, 0.6, {}),
    Span("collective", 0.52, 0.58, {"op": "all_reduce", "bytes": 4, "ranks": 2}),
)
RECEIVER = _rank(
    1,
    5.0,  # its clock is 95 s behind
    95.0,
    Span("message", 0.0, 0.4, {"sends": [], "receives": [Message(0, "forward")]}),
    Span("forward-compute", 0.4, 0.6, {}),
    Span("backward-compute", 0.6, 0.9, {}),
)


def test_ranks_have_one_clock() -> None:
    trace = trace_of([SENDER, RECEIVER])
    require_lanes(trace, 2)
    assert [span["ts"] for rank in (0, 1) for span in slices(trace, rank, "steps")] == [0, 0]
    ((sent, received),) = arrows(trace).values()
    assert (sent["pid"], received["pid"]) == (0, 1)
    assert sent["ts"] == pytest.approx(0.3e6)
    assert received["ts"] == pytest.approx(0.4e6, abs=1)


def test_spans_are_called_what_people_call_them() -> None:
    trace = trace_of([SENDER, RECEIVER])
    names = {
        (rank, lane): [span["name"] for span in slices(trace, rank, lane)]
        for rank in (0, 1)
        for lane in LANES
    }
    assert names[0, "passes"] == ["forward 0", "gradient norm"]
    assert names[0, "vision"] == ["vision"]
    assert names[0, LANES[3]] == ["send forward to 1", "all_reduce"]
    assert names[1, "passes"] == ["forward 0", "backward 0"]
    assert names[1, LANES[3]] == ["receive forward from 0"]


def test_a_wrong_clock_is_seen() -> None:
    with pytest.raises(AssertionError, match="0 to 1, forward 1"):
        arrows(trace_of([SENDER, replace(RECEIVER, offset=94.8)]))


def test_an_overlap_is_seen() -> None:
    (step,) = RECEIVER.steps
    longer = replace(step, spans=[replace(span, end=span.end + 0.1) for span in step.spans])
    with pytest.raises(AssertionError, match="overlaps in passes"):
        require_lanes(trace_of([SENDER, replace(RECEIVER, steps=[longer])]), 2)

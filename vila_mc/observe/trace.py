"""Steps of all ranks in the Trace Event Format, which Perfetto and chrome://tracing show.

Every rank is a process of the trace with four lanes. In a lane, spans follow each other or lie
within each other. A message is an arrow from the span that sends to the one that receives.

Source:
    Trace Event Format, Google, 2016: complete events (X), metadata (M), flows (s, f).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vila_mc.observe.spans import Span

LANES = ("steps", "passes", "vision", "messages and collectives")
_OF_PASSES = {
    "data": "wait for data",
    "reduction": "reduce gradients",
    "norm": "gradient norm",
    "optimizer": "optimizer",
}
"""Spans of the second lane beside passes, and what people call them."""
_MICROSECONDS = 1e6
_JUST_BEFORE = 1e-3
"""Microseconds: an arrow ends within the span that receives, not on its end."""

Pass = tuple[int, int]
"""Micro-batch, and chunk of the pipeline on its rank."""


class Message(NamedTuple):
    """One end of a message between pipeline stages."""

    peer: int
    """The rank at the other end."""
    direction: str
    """forward or backward."""


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One step on one rank."""

    step: int
    began: float
    """Seconds on this rank's clock."""
    seconds: float
    spans: list[Span]
    forward: Sequence[Pass]
    """What each forward pass was about, in their order."""
    backward: Sequence[Pass]


@dataclass(frozen=True, slots=True)
class RankTrace:
    """What one rank did."""

    rank: int
    name: str
    offset: float
    """Seconds to add to its clock for the first rank's."""
    error: float
    """By how much that may be wrong, at most."""
    steps: list[TracedStep]


def trace_of(ranks: Sequence[RankTrace]) -> dict[str, Any]:
    """The trace; its times begin with the first span of any rank."""
    begin = min(step.began + rank.offset for rank in ranks for step in rank.steps)
    events: list[dict[str, Any]] = []
    for rank in ranks:
        events += _names(rank)
        for step in rank.steps:
            events += _step(rank.rank, step, step.began + rank.offset - begin)
    errors = {str(rank.rank): rank.error * _MICROSECONDS for rank in ranks}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"clock_error_us": errors},
    }


def _names(rank: RankTrace) -> Iterator[dict[str, Any]]:
    about = {"ph": "M", "pid": rank.rank}
    yield {**about, "name": "process_name", "args": {"name": rank.name}}
    yield {**about, "name": "process_sort_index", "args": {"sort_index": rank.rank}}
    for lane, name in enumerate(LANES):
        yield {**about, "tid": lane, "name": "thread_name", "args": {"name": name}}
        yield {**about, "tid": lane, "name": "thread_sort_index", "args": {"sort_index": lane}}


def _step(rank: int, step: TracedStep, began: float) -> Iterator[dict[str, Any]]:
    yield _slice(rank, 0, f"step {step.step}", Span("", 0.0, step.seconds, {}), began)
    left = {"forward-compute": list(step.forward), "backward-compute": list(step.backward)}
    counts: Counter[tuple[int, int, str]] = Counter()
    for span in sorted(step.spans, key=lambda one: one.start):
        if span.name in left:
            microbatch, chunk = left[span.name].pop(0)
            name = f"{span.name.removesuffix('-compute')} {microbatch}"
            about = {"microbatch": microbatch, "chunk": chunk}
            yield _slice(rank, 1, name, span, began, about)
        elif span.name in _OF_PASSES:
            yield _slice(rank, 1, _OF_PASSES[span.name], span, began)
        elif span.name == "vision":
            yield _slice(rank, 2, "vision", span, began)
        elif span.name == "collective":
            yield _slice(rank, 3, span.about["op"], span, began, span.about)
        elif span.name == "message":
            yield from _message(rank, step.step, span, began, counts)


def _message(
    rank: int, step: int, span: Span, began: float, counts: Counter[tuple[int, int, str]]
) -> Iterator[dict[str, Any]]:
    """A span that sends and receives, and its ends of arrows."""
    sends, receives = (
        [Message(*one) for one in span.about[name]] for name in ("sends", "receives")
    )
    said = [f"send {one.direction} to {one.peer}" for one in sends]
    said += [f"receive {one.direction} from {one.peer}" for one in receives]
    yield _slice(rank, 3, ", ".join(said), span, began)
    start = (began + span.start) * _MICROSECONDS
    end = max(start, (began + span.end) * _MICROSECONDS - _JUST_BEFORE)
    ends = [("s", (rank, one.peer, one.direction), start) for one in sends]
    ends += [("f", (one.peer, rank, one.direction), end) for one in receives]
    for phase, key, time in ends:
        # Messages of one direction between two ranks come in the order in which they are sent.
        counts[key] += 1
        source, target, direction = key
        arrow = {
            "ph": phase,
            "name": direction,
            "cat": "message",
            "id": f"{step}: {source} to {target}, {direction} {counts[key]}",
            "pid": rank,
            "tid": 3,
            "ts": time,
        }
        yield arrow | ({"bp": "e"} if phase == "f" else {})


def _slice(
    rank: int,
    lane: int,
    name: str,
    span: Span,
    began: float,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": LANES[lane],
        "pid": rank,
        "tid": lane,
        "ts": (began + span.start) * _MICROSECONDS,
        "dur": (span.end - span.start) * _MICROSECONDS,
        "args": about or {},
    }

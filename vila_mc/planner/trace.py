"""A plan's timeline in the Trace Event Format, which Perfetto and Chrome show."""

from typing import Any

from vila_mc.planner.plan import Plan

_MICROSECONDS = 1e6


def trace_of(plan: Plan) -> dict[str, Any]:
    """One lane per pipeline rank; passes are named by chunk and microbatch."""
    lanes = [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": 0,
            "tid": rank,
            "args": {"name": f"pipeline rank {rank}"},
        }
        for rank in range(plan.layout.pipeline)
    ]
    passes = [
        {
            "ph": "X",
            "name": f"{event.direction} {event.microbatch}",
            "cat": event.direction,
            "pid": 0,
            "tid": event.rank,
            "ts": event.start * _MICROSECONDS,
            "dur": (event.end - event.start) * _MICROSECONDS,
            "args": {"chunk": event.chunk, "microbatch": event.microbatch},
        }
        for event in plan.time.events
    ]
    return {"traceEvents": [*lanes, *passes], "displayTimeUnit": "ms"}

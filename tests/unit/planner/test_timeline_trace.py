"""The timeline for Perfetto, read back from its file: lanes, order, nothing at the same time."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vila_mc.config.load import load_run
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.plan import plan_of
from vila_mc.planner.schedule import rank_order
from vila_mc.planner.trace import trace_of
from vila_mc.topology.hardware import GPUS

_ROUNDING = 1e-3
"""Microseconds."""


def _end(one: dict[str, Any]) -> float:
    return float(one["ts"] + one["dur"])


@pytest.mark.parametrize(
    ("layout", "pipeline", "virtual"),
    [("tensor=2", 1, 1), ("pipeline=4", 4, 1), ("pipeline=2,virtual=2", 2, 2)],
)
def test_a_trace_has_a_lane_for_each_rank_in_the_schedules_order(
    layout: str, pipeline: int, virtual: int, tmp_path: Path
) -> None:
    recipe = load_run([], {"train.global_batch": "64", "model.language.layers": "8"})
    plan = plan_of(with_layout(recipe, layout), 8, GPUS["a100-80g"], FITTED, Known(images=1))
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(trace_of(plan), allow_nan=False))
    events = json.loads(file.read_text())["traceEvents"]
    named = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert named == {rank: f"pipeline rank {rank}" for rank in range(pipeline)}
    passes = [event for event in events if event["ph"] == "X"]
    assert len(events) == len(named) + len(passes)
    microbatches = 1 + max(one["args"]["microbatch"] for one in passes)
    assert microbatches >= 2 * pipeline
    for rank in range(pipeline):
        lane = [one for one in passes if one["tid"] == rank]
        order = [
            (o["cat"] == "backward", o["args"]["chunk"], o["args"]["microbatch"]) for o in lane
        ]
        assert order == rank_order(rank, pipeline, virtual, microbatches)
        assert all(one["dur"] > 0 and one["ts"] >= 0 for one in lane)
        assert all(_end(one) <= other["ts"] + _ROUNDING for one, other in pairwise(lane))


def test_a_microbatch_goes_through_the_chunks_and_back(tmp_path: Path) -> None:
    recipe = load_run([], {"train.global_batch": "64", "model.language.layers": "8"})
    placed = with_layout(recipe, "pipeline=2,virtual=2")
    trace = trace_of(plan_of(placed, 8, GPUS["a100-80g"], FITTED, Known(images=1)))
    passes = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for microbatch in {one["args"]["microbatch"] for one in passes}:
        mine = sorted(
            (one for one in passes if one["args"]["microbatch"] == microbatch),
            key=lambda one: one["ts"],
        )
        way = [(one["cat"], one["args"]["chunk"]) for one in mine]
        there = [("forward", chunk) for chunk in range(4)]
        assert way == there + [("backward", chunk) for chunk in reversed(range(4))]
        assert all(_end(one) <= other["ts"] + _ROUNDING for one, other in pairwise(mine))

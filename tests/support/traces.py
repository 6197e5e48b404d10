"""What must hold of every trace of steps."""

from collections import defaultdict
from typing import Any

from vila_mc.observe.trace import LANES

_ROUNDING = 1e-3
"""Microseconds that a sum of floating-point numbers may be off."""
Events = list[dict[str, Any]]


def slices(trace: dict[str, Any], rank: int, lane: str) -> Events:
    """The spans of one lane, in their order."""
    found = [
        event
        for event in trace["traceEvents"]
        if event["ph"] == "X" and (event["pid"], event["tid"]) == (rank, LANES.index(lane))
    ]
    return sorted(found, key=lambda event: (event["ts"], -event["dur"]))


def require_lanes(trace: dict[str, Any], num_ranks: int) -> None:
    """Every rank has its lanes by name; no span of a lane ends within another."""
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] in ("process_name", "thread_name")
    }
    for rank in range(num_ranks):
        assert names[rank, None].startswith(f"rank {rank}: ")
        assert [names[rank, lane] for lane in range(len(LANES))] == list(LANES)
        for lane in LANES:
            ends: list[float] = []
            for span in slices(trace, rank, lane):
                assert span["ts"] >= 0
                assert span["dur"] >= 0
                while ends and ends[-1] <= span["ts"] + _ROUNDING:
                    ends.pop()
                end = span["ts"] + span["dur"]
                assert not ends or end <= ends[-1] + _ROUNDING, f"{span} overlaps in {lane}"
                ends.append(end)


def arrows(trace: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Both ends of every message; each leaves a span that sends, and comes later to one that
    receives, by as much as the clocks are known."""
    ends: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            assert event["ph"] not in ends[event["id"]], f"{event['id']} stands twice"
            ends[event["id"]][event["ph"]] = event
    error = 2 * max(trace["otherData"]["clock_error_us"].values())
    for name, pair in ends.items():
        assert set(pair) == {"s", "f"}, f"{name} has one end"
        sent, received = pair["s"], pair["f"]
        assert received["ts"] >= sent["ts"] - error, name
        for end, word in (
            (sent, f"send {sent['name']} to {received['pid']}"),
            (received, f"receive {sent['name']} from {sent['pid']}"),
        ):
            around = [
                span["name"]
                for span in slices(trace, end["pid"], LANES[3])
                if span["ts"] <= end["ts"] <= span["ts"] + span["dur"] + _ROUNDING
            ]
            assert any(word in name for name in around), (word, around)
    return {name: (pair["s"], pair["f"]) for name, pair in ends.items()}

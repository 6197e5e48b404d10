"""One self-contained HTML page of a search: layouts, memory by stage, the timeline, a rehearsal."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import jinja2

from vila_mc.planner.memory import Memory
from vila_mc.planner.plan import ALLOWANCE, Plan
from vila_mc.planner.rehearsed import PlannedRehearsal, Rank, Rehearsed
from vila_mc.planner.report import GIB, plan_values, timeline_end
from vila_mc.planner.search import Search

_KINDS = ("weights", "gradients", "optimizer", "activations", "passing")
_ROW, _LABEL, _WIDE = 26, 70, 900
"""Pixels of a line of a chart, of its label, and of the whole chart."""
_UNITS = ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_NAMED = 12
"""Groups of tensors, kinds of calls and complaints that the page shows of a rank."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of the memory chart."""

    label: str
    """To the left of it; empty where it belongs to the line above."""
    title: str
    """What it is of, where a pointer rests on it."""
    held: Mapping[str, float]
    """Bytes by kind."""


def page(
    title: str,
    found: Search,
    shown: int,
    price: float | None,
    rows: str,
    rehearsal: PlannedRehearsal | None = None,
) -> str:
    """The page as text.

    Args:
        title: what was planned.
        found: its layouts; at least one.
        shown: of them, how many the table has.
        price: of an hour of one GPU; None leaves cost out.
        rows: a line about where they come from.
        rehearsal: of the recipe; None leaves its section out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vila_mc.planner"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"gib": lambda size: f"{size / GIB:.2f}", "size": _size}
    best = found.plans[0]
    return environment.get_template("plan.html.j2").render(
        title=title,
        plans=[(str(plan.layout), plan_values(plan, price)) for plan in found.plans[:shown]],
        price=price,
        rows=rows,
        limits=best.limits(),
        kinds=_KINDS,
        memory=_memory_chart(
            [
                Bar(f"stage {rank}", f"stage {rank}", asdict(held) | {"allowance": ALLOWANCE})
                for rank, held in enumerate(best.memory)
            ],
            best.gpu.memory,
        ),
        timeline=_timeline_chart(best),
        rehearsal=None if rehearsal is None else _rehearsal(*rehearsal),
        rejected=sorted(found.rejected.items(), key=lambda item: -item[1]),
        row=_ROW,
        label=_LABEL,
        wide=_WIDE,
        gib=GIB,
        days=lambda hours, layout: hours / layout / 24,
        world=best.layout.world_size(),
    )


def _size(size: float) -> str:
    """In the unit that suits it."""
    unit, name = next((u for u in _UNITS if size >= u[0]), _UNITS[-1])
    return f"{size / unit:,.4g} {name}"


def _memory_chart(bars: Sequence[Bar], gpu_bytes: float) -> dict[str, object]:
    """Lines of memory, stacked by kind, with the GPU's size across them."""
    scale = (_WIDE - _LABEL) / max(gpu_bytes, *(sum(bar.held.values()) for bar in bars))
    boxes = []
    for line, bar in enumerate(bars):
        left = float(_LABEL)
        for kind, held in bar.held.items():
            title = f"{bar.title}, {kind}: {held / GIB:.2f} GiB"
            boxes.append((kind, left, line * _ROW, held * scale, title))
            left += held * scale
    return {
        "boxes": boxes,
        "labels": [(line * _ROW, bar.label) for line, bar in enumerate(bars)],
        "size": _LABEL + gpu_bytes * scale,
        "gib": gpu_bytes / GIB,
        "height": _ROW * len(bars),
    }


def _timeline_chart(plan: Plan) -> dict[str, object]:
    """Boxes of passes by pipeline rank, and how busy each rank is."""
    events, end = plan.time.events, timeline_end(plan.time.events)
    scale = (_WIDE - _LABEL) / end
    busy: dict[int, float] = defaultdict(float)
    boxes = []
    for event in events:
        width = (event.end - event.start) * scale
        title = (
            f"stage {event.rank}, chunk {event.chunk}: {event.direction} pass of microbatch "
            f"{event.microbatch}"
        )
        left = _LABEL + event.start * scale
        boxes.append((event.direction, left, event.rank * _ROW, max(0.5, width), title))
        busy[event.rank] += event.end - event.start
    return {
        "boxes": boxes,
        "height": _ROW * plan.layout.pipeline,
        "stages": [(rank, busy[rank], busy[rank] / end) for rank in range(plan.layout.pipeline)],
        "seconds": end,
        "microbatches": 1 + max(event.microbatch for event in events),
    }


def _rehearsal(rehearsed: Rehearsed, planned: Plan) -> dict[str, object]:
    """What the page's section says of a rehearsal; a stage is shown by its fullest rank."""
    stages, matching, bars = rehearsed.stages(), rehearsed.matching, list[Bar]()
    for rank in stages:
        label = f"stage {rank.pipeline}"
        foretold = asdict(planned.memory[rank.pipeline]) | {"allowance": ALLOWANCE}
        bars.append(Bar(label, f"{label}, foretold", foretold))
        held = _by_kind(rank) | {"allowance": max(0, rank.room.needed - rank.room.seen)}
        bars.append(Bar("", f"{label}, rehearsed", held))
    fullest = max(stages, key=lambda rank: rank.step.num_bytes)
    return {
        "layout": str(rehearsed.layout),
        "world": rehearsed.layout.world_size(),
        "microbatches": rehearsed.microbatches,
        "origin": rehearsed.batch.origin,
        "num_ranks": len(rehearsed.ranks),
        "is_good": rehearsed.is_good,
        "fits": all(rank.room.fits for rank in rehearsed.ranks),
        "matching": matching,
        "complaints": rehearsed.complaints,
        "chart": _memory_chart(bars, fullest.room.gpu_bytes),
        "stages": [_stage(rank, planned, rank is fullest) for rank in stages],
        "named": _NAMED,
    }


def _stage(rank: Rank, planned: Plan, is_open: bool) -> dict[str, object]:
    peaks = [("start", rank.build), ("step", rank.step)]
    if rank.save is not None:
        peaks.append(("save", rank.save))
    return {
        "number": rank.pipeline,
        "rank": rank,
        "is_open": is_open,
        "rows": _compared(rank, planned.memory[rank.pipeline]),
        "passing": [one for one in rank.step.by_kind.items() if one[0] not in _KINDS][:_NAMED],
        "unseen": list(rank.room.unseen.items())[:_NAMED],
        "peaks": [(name, peak.num_bytes) for name, peak in peaks],
    }


def _by_kind(rank: Rank) -> dict[str, float]:
    """Bytes by the planner's kinds: what passes has several in a rehearsal."""
    held: dict[str, float] = dict.fromkeys(_KINDS, 0.0)
    for kind, size in rank.step.by_kind.items():
        held[kind if kind in _KINDS else "passing"] += size
    return held


def _compared(rank: Rank, memory: Memory) -> list[tuple[str, float, float]]:
    """Kind, bytes foretold, bytes rehearsed; the last row is the sum."""
    foretold = asdict(memory)
    rows = [(kind, foretold[kind], held) for kind, held in _by_kind(rank).items()]
    return [*rows, ("all", memory.total(), float(rank.step.num_bytes))]

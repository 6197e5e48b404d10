"""One self-contained HTML page of a search: layouts, memory by stage, the timeline."""

from importlib.resources import files
from math import ceil

import jinja2

from vila_mc.planner.plan import ALLOWANCE, Plan
from vila_mc.planner.report import GIB, plan_values, timeline_end
from vila_mc.planner.search import Search

_KINDS = ("weights", "gradients", "optimizer", "activations", "passing")
_ROW, _LABEL, _WIDE = 26, 70, 900
"""Pixels of a line of a chart, of its label, and of the whole chart."""


def page(title: str, found: Search, shown: int, price: float | None) -> str:
    """The page as text.

    Args:
        title: what was planned.
        found: its layouts; at least one.
        shown: of them, how many the table has.
        price: of an hour of one GPU; None leaves cost out.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("vila_mc.planner").joinpath("templates/plan.html.j2").read_text(encoding="utf-8")
    )
    best = found.plans[0]
    return template.render(
        title=title,
        plans=[(str(plan.layout), plan_values(plan)) for plan in found.plans[:shown]],
        price=price,
        limits=best.limits(),
        kinds=_KINDS,
        memory=_memory_bars(best),
        timeline=_timeline_bars(best),
        rejected=sorted(found.rejected.items(), key=lambda item: -item[1]),
        row=_ROW,
        label=_LABEL,
        wide=_WIDE,
        gib=GIB,
        days=lambda hours, layout: hours / layout / 24,
        world=best.layout.world_size(),
    )


def _memory_bars(plan: Plan) -> dict[str, object]:
    """Bars of memory by stage, stacked by kind, with the GPU's size as a line."""
    most = max(plan.gpu.memory, plan.fullest() + ALLOWANCE)
    scale = (_WIDE - _LABEL) / most
    bars = []
    for rank, memory in enumerate(plan.memory):
        left = float(_LABEL)
        for kind in _KINDS:
            held = getattr(memory, kind)
            bars.append((rank, kind, left, held * scale, held / GIB))
            left += held * scale
        bars.append((rank, "allowance", left, ALLOWANCE * scale, ALLOWANCE / GIB))
    return {
        "bars": bars,
        "size": _LABEL + plan.gpu.memory * scale,
        "gib": plan.gpu.memory / GIB,
        "height": _ROW * len(plan.memory),
    }


def _timeline_bars(plan: Plan) -> dict[str, object]:
    """Bars of passes by pipeline rank."""
    end = timeline_end(plan.time.events)
    scale = (_WIDE - _LABEL) / end
    bars = [
        (
            event.rank,
            event.direction,
            _LABEL + event.start * scale,
            max(0.5, (event.end - event.start) * scale),
            event.microbatch,
            event.chunk,
        )
        for event in plan.time.events
    ]
    return {
        "bars": bars,
        "height": _ROW * plan.layout.pipeline,
        "seconds": end,
        "microbatches": ceil(1 + max(event.microbatch for event in plan.time.events)),
    }

"""What a person reads of a search: tables for the terminal, values for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml

from vila_mc.planner.constants import Constants
from vila_mc.planner.plan import ALLOWANCE, Plan
from vila_mc.planner.schedule import Event
from vila_mc.planner.search import Search

GIB = 2**30
_WIDTH = 72
"""Columns of a timeline."""


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns; the first is their heading. Figures stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def search_lines(found: Search, constants: Constants, price: float | None, top: int) -> list[str]:
    """The best layouts, what limits the first, what it holds, and what was rejected."""
    if not found.plans:
        return ["no layout fits.", *_rejected(found), found.nearest]
    best = found.plans[0]
    low, high = constants.band
    return [
        *table([_HEADING + (("cost",) if price else ()), *_rows(found.plans[:top], price)]),
        "",
        f"A step of the first takes {best.time.total * low:.2f} to {best.time.total * high:.2f} s "
        "if it is like 87 of 100 published runs (docs/planner.md).",
        f"It is limited by {best.limits()}.",
        "",
        *plan_lines(best),
        "",
        *_rejected(found),
    ]


_HEADING = (
    "layout",
    "micro-batch",
    "recompute",
    "step",
    "tokens/s/GPU",
    "MFU",
    "fullest rank",
    "GPU-hours",
    "days",
)


def _rows(plans: Sequence[Plan], price: float | None) -> list[tuple[str, ...]]:
    rows = []
    for plan in plans:
        placement = plan.config.parallel.vision_placement
        row = (
            str(plan.layout) + ("" if placement == "shared" else f", vision {placement}"),
            str(plan.job.micro_batch),
            plan.config.train.recompute,
            f"{plan.time.total:.2f} s",
            f"{plan.tokens_per_gpu():,.0f}",
            f"{plan.utilisation():.1%}",
            f"{plan.fullest() / GIB:.1f} GiB",
            f"{plan.gpu_hours():,.0f}",
            f"{plan.gpu_hours() / plan.layout.world_size() / 24:.1f}",
        )
        rows.append(row + ((f"{plan.gpu_hours() * price:,.0f}",) if price else ()))
    return rows


def plan_lines(plan: Plan) -> list[str]:
    """One layout in detail: its memory, its time, its timeline."""
    rows: list[tuple[str, ...]] = [
        (
            "GiB of a rank of stage",
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "passing",
            "all",
        )
    ]
    for rank, memory in enumerate(plan.memory):
        parts = [value / GIB for value in asdict(memory).values()]
        rows.append((str(rank), *(f"{part:.2f}" for part in (*parts, sum(parts)))))
    time = plan.time
    terms = [("seconds of a step", ""), *((name, f"{value:.3f}") for name, value in _terms(plan))]
    return [
        *table(rows),
        f"{ALLOWANCE / GIB:.0f} GiB beside them are left for what is no tensor; the GPU has "
        f"{plan.gpu.memory / GIB:.0f}.",
        "",
        *table(terms),
        "",
        f"The first {_shown(time.events)} microbatches: forward /, backward \\, waiting .",
        *timeline(time.events, plan.layout.pipeline),
    ]


def _terms(plan: Plan) -> list[tuple[str, float]]:
    time, busiest = plan.time, plan.time.busiest
    return [
        ("forward passes of the busiest stage", busiest.forward),
        ("backward passes", busiest.backward),
        ("  of both, vision", busiest.vision),
        ("  of both, sums over tensor-parallel ranks", busiest.sums),
        ("  of both, recomputation", busiest.recomputed),
        ("  of both, waiting for the host", busiest.launch),
        ("waiting for other stages", time.pipeline - time.busy),
        ("sums of gradients that nothing hides", time.gradients),
        ("optimizer", time.optimizer),
        ("everything else", time.rest),
        ("all", time.total),
    ]


def _shown(events: Sequence[Event]) -> int:
    return 1 + max(event.microbatch for event in events)


def timeline(events: Sequence[Event], pipeline: int) -> list[str]:
    """A line for each pipeline rank, from the first pass to the last."""
    end = timeline_end(events)
    lines = [["."] * _WIDTH for _ in range(pipeline)]
    for event in events:
        first, last = (int(at / end * _WIDTH) for at in (event.start, event.end))
        for column in range(first, max(first + 1, last)):
            lines[event.rank][min(column, _WIDTH - 1)] = (
                "/" if event.direction == "forward" else "\\"
            )
    width = len(str(pipeline - 1))
    return [f"stage {rank:{width}}  {''.join(line)}" for rank, line in enumerate(lines)]


def _rejected(found: Search) -> list[str]:
    if not found.rejected:
        return []
    ranked = sorted(found.rejected.items(), key=lambda item: -item[1])
    return table([("rejected", "layouts"), *((reason, f"{count:,}") for reason, count in ranked)])


def plan_values(plan: Plan) -> dict[str, Any]:
    """One layout as plain values, in seconds, bytes and FLOP/s."""
    return {
        "layout": asdict(plan.layout),
        "vision_placement": plan.config.parallel.vision_placement,
        "micro_batch": plan.job.micro_batch,
        "recompute": plan.config.train.recompute,
        "gpu": plan.gpu.name,
        "step_seconds": plan.time.total,
        "seconds": dict(_terms(plan)),
        "bubble": plan.time.bubble(),
        "tokens_per_second_per_gpu": plan.tokens_per_gpu(),
        "flops_per_second_per_gpu": plan.flops_per_gpu(),
        "model_flops_utilisation": plan.utilisation(),
        "memory_bytes_by_stage": [asdict(one) | {"all": one.total()} for one in plan.memory],
        "allowance_bytes": ALLOWANCE,
        "fits": plan.fits(),
        "gpu_hours": plan.gpu_hours(),
        "limited_by": plan.limits(),
    }


def timeline_end(events: Sequence[Event]) -> float:
    """When the last pass ends, in seconds."""
    return max(event.end for event in events)


def recipe_of(plan: Plan) -> str:
    """The ``parallel`` section of a plan and what goes with it, as a recipe to add."""
    parallel = plan.config.parallel
    values = {
        "parallel": {
            "tensor": parallel.tensor,
            "sequence": parallel.sequence,
            "pipeline": parallel.pipeline,
            "virtual": parallel.virtual,
            "vision_placement": parallel.vision_placement,
        },
        "train": {"micro_batch": plan.job.micro_batch, "recompute": plan.config.train.recompute},
    }
    return yaml.safe_dump(values, sort_keys=False)

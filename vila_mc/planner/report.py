"""What a person reads of a search: tables for the terminal, values for JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml

from vila_mc.planner.constants import Constants
from vila_mc.planner.plan import ALLOWANCE, Plan
from vila_mc.planner.schedule import Event
from vila_mc.planner.search import Search
from vila_mc.table import aligned

GIB = 2**30
COLUMNS = 100
"""Of a terminal: no line is wider."""
_TIMELINE = 72
"""Columns of a timeline."""
_SHORT = {
    "tp": "tensor-parallel ranks",
    "pp": "pipeline stages",
    "vp": "virtual stages of each",
    "dp": "data-parallel ranks",
    "mb": "rows of a micro-batch",
    "rc": "recompute full",
    "vd": "vision dedicated",
    "un": "layers not spread evenly",
}
"""What a layout in a table is written with."""


def search_lines(found: Search, constants: Constants, price: float | None, top: int) -> list[str]:
    """The best layouts, what limits the first, what it holds, and what was rejected."""
    if not found.plans:
        return ["no layout fits.", *_rejected(found), found.nearest]
    best, shown = found.plans[0], found.plans[:top]
    low, high = constants.band
    return [
        *aligned([_HEADING + (() if price is None else ("cost",)), *_rows(shown, price)]),
        *legend(shown),
        "",
        *prose(
            f"A step of the first takes {best.time.total * low:.2f} to "
            f"{best.time.total * high:.2f} s if it is like 87 of 100 published runs "
            f"(docs/planner.md). It is limited by {best.limits()}."
        ),
        "",
        *plan_lines(best),
        "",
        *_rejected(found),
    ]


def prose(text: str) -> list[str]:
    """Lines no wider than the terminal."""
    return textwrap.wrap(text, COLUMNS)


def short_layout(plan: Plan) -> str:
    """A layout in a cell: ``tp2 pp4 vp2 dp16 mb1 rc``."""
    layout, parallel = plan.layout, plan.config.parallel
    return " ".join(
        word
        for word, is_there in (
            (f"tp{layout.tensor}", True),
            (f"pp{layout.pipeline}", True),
            (f"vp{layout.virtual}", layout.virtual > 1),
            (f"dp{layout.data}", True),
            (f"mb{plan.job.micro_batch}", True),
            ("rc", plan.config.train.recompute == "full"),
            ("vd", parallel.vision_placement == "dedicated"),
            ("un", parallel.layers_per_stage is not None),
        )
        if is_there
    )


def legend(plans: Sequence[Plan]) -> list[str]:
    """What the words of their layouts mean."""
    used = {word[:2] for plan in plans for word in short_layout(plan).split()}
    return prose(", ".join(f"{word}: {what}" for word, what in _SHORT.items() if word in used))


_HEADING = ("layout", "step", "tokens/s/GPU", "MFU", "GiB", "GPU-hours", "days")


def _rows(plans: Sequence[Plan], price: float | None) -> list[tuple[str, ...]]:
    rows = []
    for plan in plans:
        row = (
            short_layout(plan),
            f"{plan.time.total:.2f} s",
            f"{plan.tokens_per_gpu():,.0f}",
            f"{plan.utilisation():.1%}",
            f"{plan.fullest() / GIB:.1f}",
            f"{plan.gpu_hours():,.0f}",
            f"{plan.gpu_hours() / plan.layout.world_size() / 24:.1f}",
        )
        rows.append(row + (() if price is None else (f"{plan.gpu_hours() * price:,.0f}",)))
    return rows


def plan_lines(plan: Plan) -> list[str]:
    """One layout in detail: what it is of, its memory, its time, its saves, its timeline."""
    kinds = ("weights", "gradients", "optimizer", "activations", "passing", "all", "LLM layers")
    rows: list[tuple[str, ...]] = [("GiB of a rank of stage", *kinds)]
    layers = [chunk.layers for chunk in plan.job.chunks()]
    for rank, memory in enumerate(plan.memory):
        parts = [value / GIB for value in asdict(memory).values()]
        held = "+".join(map(str, layers[rank :: plan.layout.pipeline]))
        rows.append((str(rank), *(f"{part:.2f}" for part in (*parts, sum(parts))), held))
    terms = [("seconds of a step", ""), *((name, f"{value:.3f}") for name, value in _terms(plan))]
    return [
        *data_lines(plan),
        "",
        *aligned(rows),
        f"{ALLOWANCE / GIB:.0f} GiB beside them are left for what is no tensor; the GPU has "
        f"{plan.gpu.memory / GIB:.1f}.",
        *_fp8_lines(plan),
        "",
        *aligned(terms),
        "",
        *_save_lines(plan),
        "",
        f"The first {_shown(plan.time.events)}: forward /, backward \\, waiting .",
        *timeline(plan.time.events, plan.layout.pipeline),
    ]


def data_lines(plan: Plan) -> list[str]:
    """What rows hold, and where that comes from."""
    known, train = plan.known, plan.config.train
    replay, dealt = known.replay, known.dealt(plan.layout.data, plan.job.micro_batch)
    steps = ("steps", f"{train.steps:,}", known.steps_from)
    heading = ("a step's rows", "", "taken from")
    if replay is None or dealt is None:
        guess = "assumed: as many as have room" if known.images is None else "as given"
        return aligned(
            [
                heading,
                ("images of a row", f"{plan.job.images:.2f}", guess),
                ("positions that samples take", "100.0%", "assumed: no padding"),
                ("images of the fullest rank / an average one", "1.00", "assumed: all alike"),
                steps,
            ]
        )
    source = f"the index, {len(replay.batches)} steps replayed"
    images_a_step = replay.images() * train.global_batch
    return aligned(
        [
            heading,
            ("samples of a step", f"{replay.samples():,.0f}", source),
            ("images of a step", f"{images_a_step:,.0f}", source),
            ("images of a row", f"{replay.images():.2f}", source),
            ("positions that samples take", f"{replay.filled():.1%}", source),
            ("tokens of a step", f"{plan.tokens():,.0f}", source),
            ("images of the fullest rank / an average one", f"{dealt.unevenness():.2f}", source),
            ("images of the fullest pass", f"{dealt.fullest_pass():,}", source),
            steps,
        ]
    )


def _fp8_lines(plan: Plan) -> list[str]:
    """What of FP8's memory is counted; nothing without FP8."""
    if plan.config.train.fp8.recipe == "none":
        return []
    return prose(
        "Weights are counted with their copies in FP8, none of it measured. What layers in FP8 "
        "keep for the backward pass is counted as in bf16, and scales are not."
    )


def _save_lines(plan: Plan) -> list[str]:
    saves, config = plan.saves, plan.config
    share = saves.waiting / (plan.time.total * config.train.steps + saves.waiting)
    how = "in the background" if config.train.async_save else "at once"
    each = f"{saves.stall:.1f} s for each and " if saves.count > 1 else ""
    return prose(
        f"Checkpoints ({saves.count:,} of {saves.size / 1e9:,.1f} GB) are written {how}: training "
        f"waits {each}{saves.last:.1f} s for the last, {share:.1%} of the hours. Validation and "
        "restarts are not counted."
    )


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
        ("waiting for the data rank with most images", time.unevenness),
        ("sums of gradients that nothing hides", time.gradients),
        ("optimizer", time.optimizer),
        ("everything else", time.rest),
        ("waiting for images to be decoded", time.data),
        ("all", time.total),
    ]


def _shown(events: Sequence[Event]) -> str:
    last = max(event.microbatch for event in events)
    return f"{last + 1} microbatches" if last else "microbatch"


def timeline(events: Sequence[Event], pipeline: int) -> list[str]:
    """A line for each pipeline rank, from the first pass to the last."""
    end = timeline_end(events)
    lines = [["."] * _TIMELINE for _ in range(pipeline)]
    for event in events:
        first, last = (int(at / end * _TIMELINE) for at in (event.start, event.end))
        for column in range(first, max(first + 1, last)):
            lines[event.rank][min(column, _TIMELINE - 1)] = (
                "/" if event.direction == "forward" else "\\"
            )
    width = len(str(pipeline - 1))
    return [f"stage {rank:{width}}  {''.join(line)}" for rank, line in enumerate(lines)]


def _rejected(found: Search) -> list[str]:
    if not found.rejected:
        return []
    ranked = sorted(found.rejected.items(), key=lambda item: -item[1])
    return aligned([("layouts", "rejected"), *((f"{count:,}", reason) for reason, count in ranked)])


def plan_values(plan: Plan, price: float | None) -> dict[str, Any]:
    """One layout in seconds, bytes and FLOP/s, with its cost if an hour has a price."""
    return {
        "layout": asdict(plan.layout),
        "vision_placement": plan.config.parallel.vision_placement,
        "layers_per_stage": [chunk.layers for chunk in plan.job.chunks()],
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
        "rows": _row_values(plan),
        "saves": asdict(plan.saves),
        "gpu_hours": plan.gpu_hours(),
        "cost": None if price is None else plan.gpu_hours() * price,
        "limited_by": plan.limits(),
    }


def _row_values(plan: Plan) -> dict[str, Any]:
    """What rows hold; assumed where no step was replayed."""
    replay, dealt = plan.known.replay, plan.known.dealt(plan.layout.data, plan.job.micro_batch)
    values = {
        "steps_replayed": 0,
        "images": plan.job.images,
        "most_images": plan.job.held_images() / plan.job.micro_batch,
        "attended": plan.job.attended,
    }
    if replay is not None and dealt is not None:
        values |= {
            "steps_replayed": len(replay.batches),
            "samples_of_a_step": replay.samples(),
            "filled": replay.filled(),
            "fullest_rank_over_average": dealt.unevenness(),
        }
    return values


def timeline_end(events: Sequence[Event]) -> float:
    """When the last pass ends, in seconds."""
    return max(event.end for event in events)


def recipe_of(plan: Plan) -> str:
    """The ``parallel`` section of a plan and what goes with it, as a recipe to add."""
    parallel = plan.config.parallel
    layers = parallel.layers_per_stage
    values = {
        "parallel": {
            "tensor": parallel.tensor,
            "sequence": parallel.sequence,
            "pipeline": parallel.pipeline,
            "virtual": parallel.virtual,
            "vision_placement": parallel.vision_placement,
            "layers_per_stage": None if layers is None else list(layers),
        },
        "train": {"micro_batch": plan.job.micro_batch, "recompute": plan.config.train.recompute},
    }
    return yaml.safe_dump(values, sort_keys=False)

"""What ``train --rehearse --json`` has printed, and the plan of the same step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from vila_mc.config.parallel import ParallelConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import TrainConfig
from vila_mc.errors import ConfigError
from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign
from vila_mc.planner.constants import Constants
from vila_mc.planner.held import rank_weights
from vila_mc.planner.known import Known
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.planner.search import PLACEMENTS
from vila_mc.topology.hardware import Gpu
from vila_mc.topology.layout import Layout

_LARGEST_BYTES = 2**26
"""A thousand ranks take a third of it."""
_MOST_RANKS = 2**16
_SAME_WEIGHTS = 0.002
"""Relative difference of a rank's weights up to which a rehearsal is of the same model."""

Count = Annotated[int, Field(ge=0, le=2**62)]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of one shape that were made at one place."""

    kind: str
    op: str
    where: str
    """``file:line``."""
    shape: list[Count]
    dtype: str
    count: Count
    num_bytes: Count
    """Of all of them."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Tensors at a greatest moment, in bytes."""

    num_bytes: Count
    by_kind: dict[str, Count]
    tensors: list[Tensors]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls of one kind in a step of one rank."""

    op: str
    group: str
    ranks: Count
    calls: Count
    num_bytes: Count


@dataclass(frozen=True, slots=True)
class Room:
    """Whether a rank fits a GPU, in bytes."""

    gpu_bytes: Count
    seen: Count
    needed: Count
    unseen: dict[str, Count]
    """What is allowed beyond what was seen."""
    fits: bool


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank takes."""

    rank: Count
    pipeline: Count
    """Its stage."""
    num_weights: Count
    build: Peak
    step: Peak
    flops_of_a_step: dict[str, float]
    traffic_of_a_step: list[Traffic]
    room: Room
    save: Peak | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Calls of all ranks compared."""

    num_collectives: Count
    num_messages: Count
    differences: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in a row of every microbatch."""

    images: Count


@dataclass(frozen=True, slots=True)
class Batch:
    """What every rehearsed microbatch is."""

    rows: Annotated[list[Row], Field(min_length=1)]
    origin: str
    """Where it comes from, in words."""

    def images(self) -> float:
        """Of a row on average."""
        return sum(row.images for row in self.rows) / len(self.rows)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A rehearsal of a recipe; what else the file says is passed over."""

    layout: Layout
    microbatches: Annotated[Count, Field(ge=1)]
    """Of a whole step, of one rank."""
    batch: Batch
    matching: Matching
    complaints: list[str]
    is_good: bool
    ranks: list[Rank]

    def stages(self) -> list[Rank]:
        """Of each stage the rank with the greatest peak."""
        greatest: dict[int, Rank] = {}
        for rank in self.ranks:
            there = greatest.get(rank.pipeline)
            if there is None or rank.step.num_bytes > there.step.num_bytes:
                greatest[rank.pipeline] = rank
        return [greatest[stage] for stage in sorted(greatest)]


PlannedRehearsal = tuple[Rehearsed, Plan]
"""A rehearsal, and the plan of the same step."""

_ADAPTER = TypeAdapter(Rehearsed)


def read_rehearsal(file: Path) -> Rehearsed:
    """Read what ``train --rehearse --json`` printed.

    Raises:
        ConfigError: there is no such file, it is no rehearsal, or no rank got to its end.
    """
    advice = "Give the JSON that a rehearsal prints (docs/rehearsal.md)."
    try:
        found = parse_foreign(read_foreign(file, _LARGEST_BYTES), _ADAPTER)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}. {advice}") from None
    except ForeignFileError as error:
        raise ConfigError(f"{file} {error}. {advice}") from None
    layout = found.layout
    degrees = (layout.tensor, layout.pipeline, layout.data, layout.virtual)
    if not 1 <= min(degrees) <= max(degrees) <= _MOST_RANKS:
        raise ConfigError(f"{file} is damaged: its layout is {layout}. {advice}")
    if not found.ranks:
        said = found.complaints[0][:200] if found.complaints else "it names no rank"
        raise ConfigError(f"{file} shows no rank at the end of its step: {said}.")
    if any(rank.pipeline >= layout.pipeline for rank in found.ranks):
        raise ConfigError(f"{file} is damaged: a stage is beyond its {layout}. {advice}")
    return found


def planned_like(rehearsed: Rehearsed, config: RunConfig, gpu: Gpu, constants: Constants) -> Plan:
    """The plan of the step that was rehearsed, of rows with as many images.

    Args:
        rehearsed: a rehearsal.
        config: the recipe, in any layout.
        gpu: their kind.
        constants: fitted.

    Raises:
        ConfigError: the recipe cannot take that layout, or has other weights in it.
    """
    layout, known, reason = rehearsed.layout, Known(images=rehearsed.batch.images()), ""
    for changes in _placements(rehearsed, config.parallel):
        try:
            parallel = replace(config.parallel, **changes)
            train = _as_rehearsed(rehearsed, config.train)
            placed = replace(config, parallel=parallel, train=train)
            plan = plan_of(placed, layout.world_size(), gpu, constants, known)
        except ConfigError as error:
            reason = reason or str(error)
            continue
        difference = _other_weights(rehearsed, plan)
        if not difference:
            return plan
        reason = reason or difference
    raise ConfigError(
        f"the rehearsal is of another recipe, or of other options: {reason.rstrip('.')}. Rehearse "
        "and plan with the same options."
    )


def _placements(rehearsed: Rehearsed, own: ParallelConfig) -> Iterator[dict[str, Any]]:
    """What changes the recipe's own parallelism into one of the layout that was rehearsed."""
    layout = rehearsed.layout
    if (own.tensor, own.pipeline, own.virtual) == (layout.tensor, layout.pipeline, layout.virtual):
        yield {}
    for placement in PLACEMENTS if layout.pipeline > 1 else PLACEMENTS[:1]:
        yield dict(
            tensor=layout.tensor,
            sequence=layout.tensor > 1,
            pipeline=layout.pipeline,
            virtual=layout.virtual,
            vision_placement=placement,
            layers_per_stage=None,
        )


def _as_rehearsed(rehearsed: Rehearsed, train: TrainConfig) -> TrainConfig:
    """With the micro-batch, which a run may choose itself, and the recomputation of the rehearsal.

    Raises:
        ConfigError: no micro-batch gives so many microbatches.
    """
    rows, rest = divmod(train.global_batch, rehearsed.layout.data * rehearsed.microbatches)
    if rest or not rows:
        raise ConfigError(
            f"{rehearsed.microbatches} microbatches on {rehearsed.layout.data} data-parallel ranks "
            f"are no whole part of train.global_batch {train.global_batch}"
        )
    again = any("recompute" in rank.flops_of_a_step for rank in rehearsed.ranks)
    recompute = train.recompute
    if again != (recompute != "none"):
        recompute = "full" if again else "none"
    return replace(train, micro_batch=rows, recompute=recompute)


def _other_weights(rehearsed: Rehearsed, plan: Plan) -> str:
    """In what the weights differ from the plan's; nothing if they do not."""
    for rank in rehearsed.stages():
        planned = rank_weights(plan.job, rank.pipeline)
        if not isclose(rank.num_weights, planned, rel_tol=_SAME_WEIGHTS):
            return (
                f"a rank of its stage {rank.pipeline} holds {rank.num_weights / 1e6:,.1f} million "
                f"weights, and {planned / 1e6:,.1f} here"
            )
    return ""

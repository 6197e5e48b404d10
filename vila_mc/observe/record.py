"""What a sink is given: after every step and validation, and when something looks wrong."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step over the whole global batch; the fields are the names in every sink."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over all trained positions, in nats. It and the next may be no finite number."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Loss or gradient was not finite, so no weight was changed."""
    learning_rate: float
    trained_tokens: int
    """Positions with a label."""
    images: int
    samples: int
    filled: float
    """Share of the positions that hold a sample; the others are padding."""
    substitutes: int
    """Images that could not be decoded and were replaced."""
    loss_by_entry: list[float | None]
    """Mean over the trained positions of each entry of data.blend, in its order; null where a step
    trained none."""
    step_ms: float
    """Wall-clock time of the step, waiting for its data included, in milliseconds."""
    positions: int
    """Positions that hold a sample, visual tokens among them."""
    flops: float
    """What the mathematics of the step asks for, on all ranks; see ``topology.flops``."""
    tokens_per_second_per_rank: float
    """Positions that hold a sample, each second, by the ranks (GPUs) that share them."""
    images_per_second: float
    """On all ranks."""
    tflops_per_rank: float
    """10**12 of ``flops`` each second, by the ranks that share them."""
    mfu: float | None
    """Share of the GPU's peak in the format of training that they are; null where no peak is
    known."""
    peak_memory_gib: float
    """Of the fullest rank: on a GPU of tensors since the step before, else of its process."""
    data_ms: float
    """This and the next seven add up to the step: means over ranks. Waiting for what is read."""
    vision_ms: float
    """Vision tower and connector, forward."""
    forward_ms: float
    """The language model, forward."""
    backward_ms: float
    """All that goes backward, recomputation included."""
    pipeline_ms: float
    """Stages that wait for each other; 0 without stages."""
    reduction_ms: float
    """Sums of gradients over ranks that nothing hides, and waiting for slower ranks."""
    optimizer_ms: float
    """The gradients' norm, clipping, the update, and gathering of what was updated."""
    other_ms: float
    """What is left of the step."""
    save_ms: float
    """What saving kept training waiting since the step before; not part of the step."""
    busy_ms: float
    """What a rank worked itself: data, vision, forward, backward, update. Mean over ranks."""
    slowest_rank: int
    """The rank that worked longest."""
    slowest_busy_ms: float
    """How long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """One measurement over all of ``data.validation``; the fields are the names in every sink."""

    step: int
    """Optimizer steps done before it."""
    validation_loss: float
    """Mean over all trained positions, in nats. It may be no finite number."""
    validation_tokens: int
    """Positions with a label."""
    validation_loss_by_entry: list[float | None]
    """Mean over the trained positions of each entry of data.validation, in its order; null where
    there are none."""
    validation_ms: float
    """Wall-clock time, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """What a run is, each time that its ranks have met and loaded, and it starts or goes on."""

    format_version: int
    """Of the fields of all records, see ``FORMAT_VERSION``."""
    time: float
    """When, in seconds since the epoch."""
    step: int
    """The step it goes on after; 0 at its beginning."""
    steps: int
    """Of the whole run."""
    phase: str
    ranks: int
    """How many."""
    restart: int
    """0 for a start by a person or a scheduler, n for the n-th restart after it."""
    host: str
    """Machine of the first rank."""
    device: str
    """``cpu``, or what the driver calls the first rank's GPU."""
    layout: dict[str, int]
    """Degrees of parallelism."""
    versions: dict[str, str]
    """Of vila_mc, Python and the packages it runs on."""
    git: dict[str, str | bool] | None
    """``commit`` of the checkout that vila_mc runs from, and ``is_modified``; null without one."""
    config: dict[str, Any]
    """The whole configuration, defaults included."""


FORMAT_VERSION = 3
"""Version 1 had no times of a step's parts, speeds and memory, and no records of starts; version 2
had what a run is in a file of its own, not in its history."""


def numbers_of(record: object) -> dict[str, float]:
    """The figures of a record by name, those of a list by ``name/index``; null ones are left out.

    Args:
        record: one of a step or a validation.
    """
    found: dict[str, float] = {}
    for name, value in asdict(record).items():  # type: ignore[call-overload]
        several = value if isinstance(value, list) else None
        named = (
            {name: value} if several is None else {f"{name}/{i}": v for i, v in enumerate(several)}
        )
        found |= {key: float(one) for key, one in named.items() if isinstance(one, (int, float))}
    return found


EventKind = Literal[
    "loss", "grad_norm", "substitutes", "slowdown", "straggler", "data_wait", "bad_step"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that looks wrong in a run; the fields are the names in every sink."""

    step: int
    """The optimizer step after which it was seen."""
    event: EventKind
    """What kind of thing it is. docs/operations.md says what to do about each."""
    message: str
    """One line for people."""
    value: float | None = None
    """What was measured."""
    usual: float | None = None
    """What it was compared with, in the same unit."""
    rank: int | None = None
    """Rank that it was seen on; null where it concerns all."""
    where: str | None = None
    """That rank with its machine and GPU."""
    samples: list[str] | None = None
    """DATASET[NUMBER] of each sample that may be the cause."""

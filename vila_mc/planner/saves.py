"""What checkpoints cost: how often a run waits for one, and how long."""

from dataclasses import dataclass

from vila_mc.config.run import RunConfig
from vila_mc.planner.held import rank_learnt, rank_weights
from vila_mc.planner.job import Job

COPIED = 1.74e9
"""Bytes a second at which a save brings what a rank writes into the host's memory while training
waits, planning included: 1.85 GiB in 1.05 and 1.23 s on one H100 (docs/gpu_results.md,
`benchmarks/gpu_saves.py`)."""
STATE = 12
"""Bytes of the optimizer's state of a weight that learns; weights themselves take 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saves:
    """The checkpoints of a run; validation and restarts are not counted."""

    count: int
    size: float
    """Bytes of one."""
    stall: float
    """Seconds that training waits for one, but the last."""
    last: float
    """Seconds that the end of the run waits for the last."""
    waiting: float
    """Seconds that it waits for all of them."""


def saves_of(config: RunConfig, job: Job, step: float, disk: float) -> Saves:
    """The checkpoints of a run.

    Args:
        config: says how often they are saved, and whether in the background.
        job: says what a rank holds.
        step: seconds of a step.
        disk: bytes a second that the storage takes from all machines together.
    """
    train, share = config.train, job.share
    stages = [_written(job, rank) for rank in range(share.pipeline)]
    size, mine = share.tensor * sum(stages), max(stages) / share.data
    copying, writing = mine / COPIED, size / disk
    late = writing
    if train.async_save:  # what is written when the next one is due holds nobody up
        overdue = copying + writing - step * min(train.save_every, train.steps)
        at_once = share.ranks() * max(0.0, mine - train.save_memory_bytes()) / disk
        late = min(writing, max(overdue, at_once, 0.0))
    count = -(-train.steps // train.save_every)
    stall = copying + late
    return Saves(
        count=count,
        size=size,
        stall=stall,
        last=copying + writing,
        waiting=(count - 1) * stall + copying + writing,
    )


def _written(job: Job, rank: int) -> float:
    """Bytes of a tensor-parallel share of a stage. What adapters stand beside is in
    another checkpoint."""
    learnt = rank_learnt(job, rank)
    return STATE * learnt + 2 * (learnt if job.learns.adapters else rank_weights(job, rank))

"""Steps whose microbatches differ end with the data-parallel rank that has most to do."""

from collections.abc import Iterator

import numpy as np

from vila_mc.planner.passes import Passes, PassTimes
from vila_mc.planner.replay import Dealt

_STEPS_OF_A_ROW = 32
"""Lengths attended to are told apart by so many steps of a row's."""


def slowest_ranks(times: PassTimes, dealt: Dealt) -> Iterator[list[list[Passes]]]:
    """Of each replayed step the rank that works longest: a list per chunk, of its microbatches."""
    job = times.job
    grain = job.length / _STEPS_OF_A_ROW
    lengths = np.maximum(np.rint(dealt.attended / grain), 1) * grain
    for images, attended in zip(dealt.images, lengths, strict=True):
        work = _seconds(times, images, lengths=attended)
        rank = int(work.sum(axis=1).argmax())
        contents = list(
            zip((images[rank] / job.micro_batch).tolist(), attended[rank].tolist(), strict=True)
        )
        yield [[times.of(chunk, *one) for one in contents] for chunk in job.chunks()]


def _seconds(times: PassTimes, images: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[ranks, passes] seconds of a pass through all chunks, up to what all have in common."""
    job = times.job

    def through(images_of_a_row: float, attended: float) -> float:
        passes = (times.of(chunk, images_of_a_row, attended) for chunk in job.chunks())
        return sum(one.forward + one.backward for one in passes)

    base = through(0.0, job.length)
    seen, at = np.unique(images, return_inverse=True)
    vision = np.array([through(one / job.micro_batch, job.length) - base for one in seen.tolist()])
    long, there = np.unique(lengths, return_inverse=True)
    attention = np.array([through(0.0, one) for one in long.tolist()])
    seconds: np.ndarray = vision[at].reshape(images.shape) + attention[there].reshape(images.shape)
    return seconds

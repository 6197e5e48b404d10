"""The fullest microbatch of a run's first steps, counted from the indices of its datasets alone."""

from dataclasses import dataclass

import numpy as np

from vila_mc.config.run import RunConfig
from vila_mc.data.batches.balance import deal_rows
from vila_mc.data.batches.datasets import open_blend
from vila_mc.data.batches.sampler import GlobalBatch
from vila_mc.data.indexed.dataset_manifest import SUFFIX
from vila_mc.data.indexed.layout import with_suffix
from vila_mc.planner.replay import Replay
from vila_mc.rehearsal.batch import Row, full_rows


@dataclass(frozen=True, slots=True)
class Batch:
    """What every rehearsed microbatch is, and where that comes from."""

    rows: tuple[Row, ...]
    is_synthetic: bool
    origin: str
    """In words."""


def batch_of_a_rank(config: RunConfig, data_ranks: int, num_steps: int) -> Batch:
    """The fullest microbatch of the first steps, or full rows where the data is not here.

    Args:
        config: the whole configuration.
        data_ranks: data-parallel ranks.
        num_steps: first steps that are counted; 0 for full rows in any case.

    Raises:
        ConfigError: data.tokenizer is not set.
        DataError: a dataset is here and cannot be used.
    """
    manifests = [with_suffix(entry.path, SUFFIX) for entry in config.data.blend]
    lacking = next((file for file in manifests if not file.exists()), None)
    if num_steps and manifests and lacking is None:
        return _fullest_of_the_first(config, data_ranks, min(num_steps, config.train.steps))
    rows = full_rows(config)
    why = f", as {lacking} is not here" if num_steps and lacking is not None else ""
    return Batch(
        rows,
        is_synthetic=True,
        origin=f"synthetic{why}: {len(rows)} x {config.data.sequence_length} positions full of "
        f"images ({rows[0].images} a row)",
    )


def _fullest_of_the_first(config: RunConfig, data_ranks: int, num_steps: int) -> Batch:
    """By images, which decide most of the memory; among those with as many, by filled positions."""
    replay = Replay.of(config, open_blend(config.data, config.model), num_steps)
    micro_batch, length = config.train.rows_of_a_pass(), config.data.sequence_length
    most, fullest, num_images, num_passes = -1, Batch((), False, ""), 0, 0
    for step, drawn in enumerate(replay.batches, start=1):
        images, filled = _contents(drawn)
        passes = deal_rows(drawn.costs(), data_ranks, micro_batch)
        fullness = (images * (micro_batch * length + 1) + filled)[passes].sum(axis=-1)
        num_images, num_passes = num_images + int(images.sum()), num_passes + fullness.size
        if fullness.max() <= most:
            continue
        most = int(fullness.max())
        rank, number = np.unravel_index(fullness.argmax(), fullness.shape)
        rows = tuple(_row(drawn, row, int(images[row])) for row in passes[rank, number])
        held = f"{sum(row.images for row in rows)} images in {len(rows)} x {length} positions"
        fullest = Batch(
            rows,
            is_synthetic=False,
            origin=f"{held}, {sum(sum(row.sample_lengths) for row in rows):,} of them filled: the "
            f"fullest of the first {num_steps:,} steps of data.blend (step {step}, data-parallel "
            f"rank {rank})",
        )
    mean = f"; the mean one has {num_images / num_passes:.1f}"
    return Batch(fullest.rows, is_synthetic=False, origin=fullest.origin + mean)


def _contents(batch: GlobalBatch) -> tuple[np.ndarray, np.ndarray]:
    """[rows] images and filled positions."""
    counted = (
        np.bincount(batch.rows, each, batch.num_rows) for each in (batch.images, batch.lengths)
    )
    of_images, filled = (each.astype(np.int64) for each in counted)
    return of_images, filled


def _row(batch: GlobalBatch, row: int, images: int) -> Row:
    here = np.flatnonzero(batch.rows == row)
    return Row(tuple(batch.lengths[here].tolist()), images, tuple(batch.datasets[here].tolist()))

"""The microbatch that is rehearsed: what stands in its rows, and its tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in a row of a microbatch; what its samples leave of it is padding."""

    sample_lengths: tuple[int, ...]
    """Positions of each sample."""
    images: int
    """Of all of them; tiles, where images are cut."""
    entries: tuple[int, ...] = ()
    """Entry of data.blend of each sample; empty if there is no blend."""


def full_rows(config: RunConfig) -> tuple[Row, ...]:
    """Rows without padding, full of images: as much as a recipe can ask of a rank.

    With data.packing a row holds two samples and one position of padding, so that what is done for
    either is done.
    """
    length = config.data.sequence_length
    lengths = (length // 2, length - length // 2 - 1) if config.data.packing else (length,)
    entries = (0,) * len(lengths) if config.data.blend else ()
    row = Row(lengths, length // config.model.tile_positions(), entries)
    return (row,) * config.train.rows_of_a_pass()


def microbatch_of(config: RunConfig, rows: Sequence[Row], *, needs_images: bool) -> Microbatch:
    """Rows as tensors. Images stand at the beginning of their row; every token is trained.

    Args:
        config: the whole configuration.
        rows: what stands in each.
        needs_images: whether the rank's stage looks at pixels.
    """
    length, positions = config.data.sequence_length, config.model.tile_positions()
    side = config.model.vision.image_size
    starts = [
        [row, image * positions]
        for row, content in enumerate(rows)
        for image in range(content.images)
    ]
    num_pixels = (len(starts) if needs_images else 0, 3, side, side)
    return Microbatch(
        tokens=torch.zeros(len(rows), length, dtype=torch.int64),
        labels=torch.zeros(len(rows), length, dtype=torch.int64),
        images=torch.zeros(num_pixels, dtype=torch.uint8),
        image_starts=torch.tensor(starts, dtype=torch.int64).view(-1, 2),
        num_samples=sum(len(row.sample_lengths) for row in rows),
        sample_lengths=tuple(row.sample_lengths for row in rows),
        entries=tuple(row.entries for row in rows) if config.data.blend else (),
    )

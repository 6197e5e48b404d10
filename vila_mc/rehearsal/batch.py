"""A microbatch that asks as much of a rank as any of a recipe can."""

import torch

from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch


def fullest_microbatch(config: RunConfig, *, needs_images: bool) -> Microbatch:
    """Rows without padding, full of images, of which every token is trained.

    With data.packing a row holds two samples and one position of padding, so that what is done for
    either is done.

    Args:
        config: the whole configuration.
        needs_images: whether the rank's stage looks at pixels.
    """
    rows, length = config.train.rows_of_a_pass(), config.data.sequence_length
    positions, side = config.model.tile_positions(), config.model.vision.image_size
    per_row = length // positions
    starts = [[row, image * positions] for row in range(rows) for image in range(per_row)]
    lengths = (length // 2, length - length // 2 - 1) if config.data.packing else (length,)
    num_pixels = (rows * per_row if needs_images else 0, 3, side, side)
    return Microbatch(
        tokens=torch.zeros(rows, length, dtype=torch.int64),
        labels=torch.zeros(rows, length, dtype=torch.int64),
        images=torch.zeros(num_pixels, dtype=torch.uint8),
        image_starts=torch.tensor(starts, dtype=torch.int64).view(-1, 2),
        num_samples=rows * len(lengths),
        sample_lengths=(lengths,) * rows,
        entries=((0,) * len(lengths),) * rows if config.data.blend else (),
    )

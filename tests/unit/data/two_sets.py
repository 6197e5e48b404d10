"""A loader over two small sets, and how its samples are told apart."""

from collections.abc import Iterable
from itertools import accumulate

from vila_mc.config.data import DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.flow import Microbatch

BATCH = 12


def opened(
    data: DataConfig, model: ModelConfig, *, rank: int = 0, size: int = 1, micro: int = 1
) -> TrainingData:
    return TrainingData(
        data,
        model,
        micro_batch=micro,
        global_batch=BATCH,
        data_rank=rank,
        data_size=size,
        needs_images=rank == 0,
    )


def names(microbatches: Iterable[Microbatch]) -> list[int]:
    """The token of each sample that is its own (after BOS, a prompt token and 4 visual tokens)."""
    return [
        int(batch.tokens[row, end - length + 6])
        for batch in microbatches
        for row, lengths in enumerate(batch.sample_lengths)
        for length, end in zip(lengths, accumulate(lengths), strict=True)
    ]

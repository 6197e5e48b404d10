"""Which samples of a dataset nothing learns from: those that ``data.held_out`` keeps back.

Whether a sample is held out follows from its number in its dataset and from nothing else. So it
stays out in every run, with every blend, seed and phase, and in a dataset to which samples are
added behind; and those of a smaller share are among those of a greater one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vila_mc.config.data import DataConfig
from vila_mc.data.batches.blend import mix
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.errors import DataError

_BLOCK = 2**20
"""Samples that are looked at together, to take little memory."""
_SALT = 0x5E1D_0F7E_57B1_0C4B
"""Another order than those in which samples are drawn."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the samples of a dataset, counted from 0."""

    size: int
    """How many."""
    held: np.ndarray
    """[held] int64 numbers of the samples that are held out, in order."""
    is_held: bool
    """Whether this part is of those; else of the others."""

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """[n] int64 numbers in the dataset of samples that are counted within the part."""
        if self.is_held:
            numbers: np.ndarray = self.held[indices]
            return numbers
        kept_before = self.held - np.arange(len(self.held))  # each of those held out
        return indices + np.searchsorted(kept_before, indices, side="right")


@lru_cache(maxsize=64)
def split(size: int, share: float) -> tuple[Part, Part]:
    """What is learnt of a dataset of ``size`` samples, and what is held out of it.

    Args:
        size: its samples.
        share: of them that is held out, at least 0 and below 1.
    """
    limit = np.uint64(int(share * 2.0**64))
    found = [
        first + np.flatnonzero(mix(_numbers(first, min(first + _BLOCK, size))) < limit)
        for first in range(0, size if share else 0, _BLOCK)
    ]
    held = np.concatenate([np.zeros(0, np.int64), *found])
    return Part(size - len(held), held, False), Part(len(held), held, True)


def _numbers(first: int, end: int) -> np.ndarray:
    return np.arange(first, end, dtype=np.uint64) + np.uint64(_SALT)


def learnt_parts(data: DataConfig, readers: Sequence[IndexedReader]) -> list[Part]:
    """What of each dataset of the blend is learnt. Raises DataError if it is nothing."""
    parts = [split(len(reader), data.held_out)[0] for reader in readers]
    _require_samples(data, readers, parts)
    return parts


def validation_parts(data: DataConfig, readers: Sequence[IndexedReader]) -> list[Part]:
    """What of each dataset of ``TrainingData.validation_readers`` the validation reads.

    Raises:
        DataError: nothing of one.
    """
    whole = len(data.validation)
    held = [split(len(reader), data.held_out)[1] for reader in readers[whole:]]
    _require_samples(data, readers[whole:], held)
    return [*(split(len(reader), 0.0)[0] for reader in readers[:whole]), *held]


def _require_samples(
    data: DataConfig, readers: Sequence[IndexedReader], parts: Sequence[Part]
) -> None:
    for reader, part in zip(readers, parts, strict=True):
        if data.held_out and not part.size:
            what = "none of" if part.is_held else "all of"
            raise DataError(
                f"data.held_out {data.held_out} holds out {what} the {len(reader):,} samples of "
                f"{reader.prefix}. {'Raise' if part.is_held else 'Lower'} it, or name datasets in "
                "data.validation instead."
            )

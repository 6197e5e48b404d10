"""Which samples make the global batch that starts at a position of the stream, and in which rows.

A global batch is a stretch of the blend's stream: without packing ``global_batch`` samples, one per
row; with packing as many as best fit puts into ``global_batch`` rows. It depends on the position
and on nothing else, so the next position is the whole state of the data side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vila_mc.data.batches.balance import deal_rows
from vila_mc.data.batches.blend import Blend
from vila_mc.data.batches.held_out import Part
from vila_mc.data.batches.packing import best_fit, spread_images
from vila_mc.data.indexed.reader import IndexedReader

Draw = tuple[int, int]
"""(dataset, sample)"""
_Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Datasets, samples, lengths and images of a stretch of the stream."""

_MOST_PACKED = 2**18
"""Samples that are packed to count steps, in about half a second."""
_ENDLESS = 2**63
_BLOCK = 8192
"""Samples drawn at a time: numpy costs the same for a few as for thousands."""


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """The samples of one optimizer step and the rows they stand in."""

    datasets: np.ndarray
    """[n] int64 dataset of each sample, in the order of the stream."""
    samples: np.ndarray
    """[n] int64 sample within its dataset."""
    lengths: np.ndarray
    """[n] int64 positions, visual tokens included, at most the sequence length."""
    images: np.ndarray
    """[n] int64 images; tiles, where images are cut. Of a sample that is cut as many as its row has
    room for, which is the most that can be left of them."""
    rows: np.ndarray
    """[n] int64 row of each sample."""
    num_rows: int

    def costs(self) -> np.ndarray:
        """[rows, 2] images, and sum of the squares of the samples' lengths (attention)."""
        squares = self.lengths.astype(np.float64) ** 2
        return np.stack(
            [np.bincount(self.rows, each, self.num_rows) for each in (self.images, squares)], axis=1
        )

    def share(self, rank: int, ranks: int, micro_batch: int) -> list[list[list[Draw]]]:
        """The samples of one data-parallel rank: of each micro-batch, of each of its rows."""
        in_row: list[list[Draw]] = [[] for _ in range(self.num_rows)]
        for row, dataset, sample in zip(
            self.rows.tolist(), self.datasets.tolist(), self.samples.tolist(), strict=True
        ):
            in_row[row].append((dataset, sample))
        mine = deal_rows(self.costs(), ranks, micro_batch)[rank]
        return [[in_row[row] for row in micro] for micro in mine.tolist()]


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes through a blend."""

    samples: int
    """Samples of one pass."""
    steps: float
    """Steps of all passes, from the first sample on; the last may go on into the next pass."""
    is_exact: bool
    """Whether the steps are counted; else they are estimated from the first of them."""


class Sampler:
    """Global batches from any position of the stream.

    Args:
        blend: the order of the samples, which it counts within the parts.
        readers: the datasets, in the blend's order, opened for the model's tiling.
        num_rows: rows of a global batch.
        sequence_length: positions of a row.
        tile_positions: positions of a tile: of an image, where images are not cut.
        packing: several samples to a row, or one.
        end: samples after which the stream ends; what is left of the last batch's rows stays empty.
        parts: what of each dataset is read; all of it if None.
    """

    def __init__(
        self,
        blend: Blend,
        readers: Sequence[IndexedReader],
        *,
        num_rows: int,
        sequence_length: int,
        tile_positions: int,
        packing: bool,
        end: int = _ENDLESS,
        parts: Sequence[Part] | None = None,
    ) -> None:
        self._blend, self._readers, self._parts = blend, readers, parts
        self._num_rows, self._length = num_rows, sequence_length
        self._tile_positions, self._packing, self.end = tile_positions, packing, end
        self._ahead_from = 0
        self._ahead = self._draw(0, 0)

    def at(self, position: int) -> GlobalBatch:
        """The global batch that starts at ``position``, a number of samples seen before it."""
        left, count = self.end - position, self._num_rows
        drawn = self._stretch(position, min(count, left))
        if not self._packing:
            rows = np.arange(len(drawn[0]))
            return GlobalBatch(*drawn, rows=rows, num_rows=self._num_rows)
        while count < left and drawn[2].sum() <= self._num_rows * self._length:
            count *= 2
            drawn = self._stretch(position, min(count, left))
        rows = best_fit(drawn[2].tolist(), self._num_rows, self._length)
        datasets, samples, lengths, images = (each[: len(rows)] for each in drawn)
        rows = spread_images(lengths, images, rows, self._num_rows, self._length)
        return GlobalBatch(datasets, samples, lengths, images, rows, self._num_rows)

    def passes(self, passes: float = 1.0) -> "Passes | None":
        """What it takes to read the blend ``passes`` times; None if it has no end.

        Packed, ``_MOST_PACKED`` samples are packed; more take as many steps in proportion.
        """
        one = self._blend.period()
        if one is None and len(self._readers) == 1:
            one = len(self._readers[0]) if self._parts is None else self._parts[0].size
        if one is None:
            return None
        samples = round(passes * one)
        if not self._packing:
            return Passes(one, samples / self._num_rows, is_exact=True)
        position, steps = 0, 0
        while position < min(samples, _MOST_PACKED):
            size = len(self.at(position).samples)
            if position + size > samples:
                return Passes(one, steps + (samples - position) / size, is_exact=True)
            position, steps = position + size, steps + 1
        return Passes(one, steps * samples / position, is_exact=position == samples)

    def _stretch(self, start: int, count: int) -> _Drawn:
        """``count`` samples from ``start`` on; some more are drawn and kept for the next call."""
        kept = start - self._ahead_from
        if not 0 <= kept <= len(self._ahead[0]):
            self._ahead, self._ahead_from, kept = self._draw(start, 0), start, 0
        missing = kept + count - len(self._ahead[0])
        if missing > 0:
            end = self._ahead_from + len(self._ahead[0])
            more = self._draw(end, max(missing, _BLOCK))
            self._ahead = _joined(tuple(each[kept:] for each in self._ahead), more)
            self._ahead_from, kept = start, 0
        datasets, samples, lengths, images = (each[kept : kept + count] for each in self._ahead)
        return datasets, samples, lengths, images

    def _draw(self, position: int, count: int) -> _Drawn:
        """[count] each: datasets, samples, lengths, images."""
        datasets, samples = self._blend.choose(position, count)
        lengths, images = np.empty(count, np.int64), np.empty(count, np.int64)
        for index, reader in enumerate(self._readers):
            here = np.flatnonzero(datasets == index)
            if not len(here):
                continue
            if self._parts is not None:
                samples[here] = self._parts[index].numbers(samples[here])
            tokens, images[here] = reader.sizes(samples[here])
            lengths[here] = tokens + self._tile_positions * images[here]
        lengths = np.minimum(lengths, self._length)
        return datasets, samples, lengths, np.minimum(images, lengths // self._tile_positions)


def _joined(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> _Drawn:
    datasets, samples, lengths, images = map(np.concatenate, zip(first, second, strict=True))
    return datasets, samples, lengths, images

"""The first steps of a run as its datasets' indices make them: what packing and balance come to.

No sample is read. The rows are those that training would see: the same blend, best fit, spreading
and dealing, which work from lengths and numbers of images alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vila_mc.config.run import RunConfig
from vila_mc.data.batches.balance import deal_rows
from vila_mc.data.batches.datasets import sampler_of
from vila_mc.data.batches.sampler import GlobalBatch
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.topology.flops import pairs_of

STEPS = 8
"""Steps that are replayed: of 1,024 rows each in about a second for every layout together."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """What every pass of every data-parallel rank holds, in each step."""

    images: np.ndarray
    """[steps, ranks, passes] int64; tiles, where images are cut."""
    attended: np.ndarray
    """[steps, ranks, passes] positions of the sample that a position stands in, on average."""

    def fullest_pass(self) -> int:
        """Images of the pass that has most."""
        return int(self.images.max())

    def fullest_rank(self) -> float:
        """Images of a step on the rank that has most, on average of the steps."""
        return float(self.images.sum(axis=2).max(axis=1).mean())

    def unevenness(self) -> float:
        """The same as a multiple of an average rank's; 1 if there are no images."""
        mean = float(self.images.sum(axis=2).mean())
        return self.fullest_rank() / mean if mean else 1.0


@dataclass(frozen=True, slots=True)
class Replay:
    """Global batches of a run's first steps."""

    batches: tuple[GlobalBatch, ...]
    length: int
    """Positions of a row."""
    is_packed: bool
    _dealt: dict[tuple[int, int], Dealt] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, config: RunConfig, readers: Sequence[IndexedReader], steps: int = STEPS
    ) -> "Replay":
        """Replay the first ``steps`` of a run.

        Args:
            config: the run.
            readers: the datasets of ``data.blend``, in its order.
            steps: at most as many as the run has.

        Raises:
            DataError: an index is damaged.
        """
        data, train = config.data, config.train
        sampler = sampler_of(data, config.model, train.global_batch, readers)
        batches: list[GlobalBatch] = []
        position = 0
        for _ in range(min(steps, train.steps)):
            batches.append(sampler.at(position))
            position += len(batches[-1].samples)
        return cls(tuple(batches), data.sequence_length, data.packing)

    def images(self) -> float:
        """Of a row, on average."""
        return sum(int(batch.images.sum()) for batch in self.batches) / self._rows()

    def samples(self) -> float:
        """Of a step, on average."""
        return sum(len(batch.samples) for batch in self.batches) / len(self.batches)

    def filled(self) -> float:
        """Share of the positions that samples take; the rest is padding."""
        taken = sum(int(batch.lengths.sum()) for batch in self.batches)
        return taken / (self._rows() * self.length)

    def pairs(self) -> float:
        """Pairs of positions of a step that causal attention looks at, on average."""
        pairs = (sum(map(pairs_of, batch.lengths.tolist())) for batch in self.batches)
        return sum(pairs) / len(self.batches)

    def attended(self) -> float:
        """Positions of the sample that a position stands in, on average."""
        return float(np.mean([self._attended(batch).mean() for batch in self.batches]))

    def dealt(self, ranks: int, micro_batch: int) -> Dealt:
        """The rows shared out among so many data-parallel ranks, so many to a pass."""
        if (ranks, micro_batch) not in self._dealt:
            images, attended = [], []
            for batch in self.batches:
                costs = batch.costs()
                rows = deal_rows(costs, ranks, micro_batch)
                images.append(costs[rows, 0].sum(axis=2).astype(np.int64))
                attended.append(self._attended(batch)[rows].mean(axis=2))
            self._dealt[ranks, micro_batch] = Dealt(np.stack(images), np.stack(attended))
        return self._dealt[ranks, micro_batch]

    def _rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def _attended(self, batch: GlobalBatch) -> np.ndarray:
        """[rows]: what is left of a packed row is padding that sees itself; a row of one sample is
        computed whole."""
        if not self.is_packed:
            return np.full(batch.num_rows, float(self.length))
        left = self.length - np.bincount(batch.rows, batch.lengths, batch.num_rows)
        attended: np.ndarray = (batch.costs()[:, 1] + left**2) / self.length
        return attended

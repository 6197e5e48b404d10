"""The training data of one data-parallel rank: from a position in the run to microbatches.

What a step reads depends on the seed and on the number of samples seen before it, and on nothing
else: a run may stop and go on with other ranks, micro-batches or worker processes.
"""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from vila_mc.config.data import DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.blend import Blend
from vila_mc.data.batches.collate import collate
from vila_mc.data.batches.datasets import open_blend, open_validation, sampler_of
from vila_mc.data.batches.held_out import validation_parts
from vila_mc.data.batches.sampler import Draw, Sampler
from vila_mc.data.batches.slots import Empty, Slots, placed_bytes
from vila_mc.data.batches.workers import MOST_UNDER_WAY, Workers
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.errors import ConfigError
from vila_mc.flow import Microbatch

_LOOK_AHEAD = 2
"""Microbatches per worker that may be ready or under way beyond the next step's."""

_HELD_STEPS = 2
"""Steps that a consumer may hold without copies: ``for`` lets one go after it has the next."""

Rows = list[list[Draw]]
"""The samples of a microbatch, by row."""


@dataclass(frozen=True, slots=True)
class StepData:
    """What one rank reads in one optimizer step."""

    microbatches: list[Microbatch]
    """This rank's share, the same number on every rank."""
    samples_seen: int
    """Samples of the run up to the end of this step, on all ranks: the whole state to resume."""


class TrainingData(AbstractContextManager["TrainingData"]):
    """Opens every dataset of the blend, deals its samples out, and forks the worker processes.

    Make it early: the workers keep the memory of this process as it is then.

    Args:
        data: blend, tokenizer, sequence length, packing, seed and workers.
        model: vocabulary and image geometry.
        micro_batch: rows of a microbatch.
        global_batch: rows of a step over all ranks.
        data_rank: which data-parallel rank this is.
        data_size: how many there are.
        needs_images: whether this rank's stage looks at images.
        microbatch_multiple: of which the microbatches of one validation pass must be a multiple.

    Raises:
        ConfigError: the blend or the tokenizer is not set, or the batch does not divide.
        DataError: a dataset is missing, damaged, or made with another tokenizer.
        SetupError: there is no room for what the workers read ahead.
    """

    def __init__(
        self,
        data: DataConfig,
        model: ModelConfig,
        *,
        micro_batch: int,
        global_batch: int,
        data_rank: int,
        data_size: int,
        needs_images: bool,
        microbatch_multiple: int = 1,
    ) -> None:
        if global_batch % (micro_batch * data_size):
            raise ConfigError(
                f"train.global_batch {global_batch} is not a multiple of train.micro_batch x "
                f"data-parallel size = {micro_batch} x {data_size}. Change one of them."
            )
        self._data, self._model, self._needs_images = data, model, needs_images
        self._rank, self._ranks, self._micro_batch = data_rank, data_size, micro_batch
        self._per_step = global_batch // (micro_batch * data_size)
        self.readers: tuple[IndexedReader, ...] = open_blend(data, model)
        """The datasets, in the order of ``data.blend``."""
        self.validation_readers: tuple[IndexedReader, ...] = (
            *open_validation(data, model),
            *(self.readers if data.held_out else ()),
        )
        """The datasets, in the order of ``data.validation``, then those that something is held out
        of, in the order of ``data.blend``."""
        self._sampler = sampler_of(data, model, global_batch, self.readers)
        divisor = micro_batch * data_size
        self._validation_sampler, num_rows = self._sampler_of_validation(
            global_batch, divisor * microbatch_multiple
        )
        self._per_validation_pass = num_rows // divisor
        self._validation_ahead = _LOOK_AHEAD * data.workers if self.validation_readers else 0
        most = MOST_UNDER_WAY - self._validation_ahead
        self._ahead = min(self._per_step + _LOOK_AHEAD * data.workers, most)
        self._workers = self._fork_workers() if data.workers else None

    def __exit__(self, *exception: object) -> None:
        self.close()

    def step(self, samples_seen: int) -> StepData:
        """What this rank reads in the step that starts after ``samples_seen`` samples.

        Raises:
            DataError: an image no longer decodes, and data.on_bad_image is stop.
        """
        draws, samples_seen = self._draws(samples_seen)
        return StepData([self._load(rows) for rows in draws], samples_seen)

    def names(self, samples_seen: int) -> list[list[str]]:
        """What this rank reads in that step: dataset and number of each microbatch's samples."""
        return [
            [f"{self.readers[dataset].prefix}[{sample}]" for row in rows for dataset, sample in row]
            for rows in self._draws(samples_seen)[0]
        ]

    def names_of_all(self, samples_seen: int) -> list[str]:
        """What all ranks read in that step, in the order of the stream."""
        batch = self._sampler.at(samples_seen)
        drawn = zip(batch.datasets.tolist(), batch.samples.tolist(), strict=True)
        return [f"{self.readers[dataset].prefix}[{sample}]" for dataset, sample in drawn]

    def iterate(self, samples_seen: int) -> Iterator[StepData]:
        """One step after the other, without end, read ahead by the workers. One call at a time.

        Pixels stay where a worker wrote them, which is used again when no tensor of them is left.
        A consumer may keep any number of steps; beyond two, their microbatches are copies.

        Raises:
            DataError: an image no longer decodes, and data.on_bad_image is stop.
            SetupError: a worker died.
        """
        if self._workers is None:
            while True:
                step = self.step(samples_seen)
                samples_seen = step.samples_seen
                yield step
        rows_ahead = self._rows_ahead(samples_seen)
        waiting: deque[tuple[int, int]] = deque()
        try:
            while True:
                loaded: list[Microbatch] = []  # in place of the last step's, whose slots are free
                for _ in range(self._per_step):
                    while len(waiting) < self._ahead:
                        rows, end = next(rows_ahead)
                        waiting.append((self._workers.request(rows), end))
                    slot, end = waiting.popleft()
                    loaded.append(self._workers.take(slot))
                yield StepData(loaded, end)
        finally:
            self._workers.drop(slot for slot, _ in waiting)

    def validation(self) -> Iterator[list[Microbatch]]:
        """This rank's share of all of ``data.validation``, a pass at a time: the same every time.

        What is left of the last pass is rows without a sample. ``iterate`` goes on as if this had
        not been.

        Raises:
            DataError: an image no longer decodes, and data.on_bad_image is stop.
            SetupError: a worker died.
        """
        with closing(self._load_ahead(self._validation_rows())) as loaded:
            while microbatches := list(islice(loaded, self._per_validation_pass)):
                yield microbatches

    def cut_samples(self) -> list[int]:
        """How many samples of each dataset are longer than a row and lose their end: those of the
        blend, then those of the validation."""
        tile, longest = self._model.tile_positions(), self._data.sequence_length
        return [
            int((reader.token_counts() + tile * reader.tile_counts() > longest).sum())
            for reader in self.whole_readers()
        ]

    def whole_readers(self) -> tuple[IndexedReader, ...]:
        """The datasets of the blend, then those of ``data.validation``: as they are named."""
        return (*self.readers, *self.validation_readers[: len(self._data.validation)])

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._workers.pids() if self._workers is not None else []

    def close(self) -> None:
        """End the workers. Files stay mapped until the object goes."""
        if self._workers is not None:
            self._workers.close()

    def _fork_workers(self) -> Workers:
        # A request lies where its microbatch will be, and is smaller: 12 bytes a sample at most.
        text = placed_bytes(self._micro_batch * self._data.sequence_length * 8)
        tiles = self._micro_batch * (self._data.sequence_length // self._model.tile_positions())
        pixels = 3 * self._model.vision.image_size**2 if self._needs_images else 0
        size = 2 * text + placed_bytes(tiles * 16) + placed_bytes(tiles * pixels)
        lendable = _HELD_STEPS * self._per_step
        slots = Slots(self._ahead + self._validation_ahead + lendable, size, lendable)
        return Workers(self._load, self._data.workers, slots)

    def _rows_ahead(self, samples_seen: int) -> Iterator[tuple[Rows, int]]:
        """This rank's microbatches without end, and the samples seen after the step of each."""
        while True:
            draws, samples_seen = self._draws(samples_seen)
            yield from ((rows, samples_seen) for rows in draws)

    def _draws(self, samples_seen: int) -> tuple[list[Rows], int]:
        """This rank's samples of the step, by microbatch and row, and the samples seen after it."""
        batch = self._sampler.at(samples_seen)
        share = batch.share(self._rank, self._ranks, self._micro_batch)
        return share, samples_seen + len(batch.samples)

    def _sampler_of_validation(self, most_rows: int, divisor: int) -> tuple[Sampler | None, int]:
        """Passes of at most ``most_rows`` rows, a multiple of ``divisor``, and their rows."""
        if not self.validation_readers:
            return None, 0
        parts = validation_parts(self._data, self.validation_readers)
        sizes = [part.size for part in parts]
        blend = Blend.by_epochs(self._data.validation_epochs(), sizes, self._data.seed)
        end = blend.period()
        assert end is not None
        num_rows = min(most_rows, -(-end // divisor) * divisor)
        sampler = Sampler(
            blend,
            self.validation_readers,
            num_rows=num_rows,
            sequence_length=self._data.sequence_length,
            tile_positions=self._model.tile_positions(),
            packing=self._data.packing,
            end=end,
            parts=parts,
        )
        return sampler, num_rows

    def _validation_rows(self) -> Iterator[Rows]:
        """This rank's microbatches of all passes; datasets are counted on from the blend's."""
        sampler, position, first = self._validation_sampler, 0, len(self.readers)
        while sampler is not None and position < sampler.end:
            batch = sampler.at(position)
            position += len(batch.samples)
            for rows in batch.share(self._rank, self._ranks, self._micro_batch):
                yield [[(first + dataset, sample) for dataset, sample in row] for row in rows]

    def _load_ahead(self, requests: Iterator[Rows]) -> Generator[Microbatch]:
        """A few microbatches after each other, read ahead by the workers."""
        if self._workers is None:
            yield from map(self._load, requests)
            return
        waiting: deque[int] = deque()
        try:
            for rows in requests:
                waiting.append(self._workers.request(rows))
                if len(waiting) == self._validation_ahead:
                    yield self._workers.take(waiting.popleft())
            while waiting:
                yield self._workers.take(waiting.popleft())
        finally:
            self._workers.drop(waiting)

    def _load(self, rows: Rows, empty: Empty = np.empty) -> Microbatch:
        readers, first = (*self.readers, *self.validation_readers), len(self.readers)
        batch = collate(
            [[readers[dataset].sample(sample) for dataset, sample in row] for row in rows],
            self._model,
            self._data.sequence_length,
            self._needs_images,
            self._data.on_bad_image,
            empty,
        )
        entries = tuple(
            tuple(dataset if dataset < first else dataset - first for dataset, _ in row)
            for row in rows
        )
        return replace(batch, entries=entries)

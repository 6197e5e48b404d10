"""The training data of one data-parallel rank: from a position in the run to microbatches.

What a step reads depends on the seed and on the number of samples seen before it, and on nothing
else: a run may stop and go on with other ranks, micro-batches or threads.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vila_mc.config.data import DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.blend import Blend
from vila_mc.data.collate import collate
from vila_mc.data.indexed_reader import IndexedReader
from vila_mc.data.sampler import Draw, Sampler
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import Microbatch

_LOOK_AHEAD = 2
"""Microbatches per thread that may be ready or under way beyond the next step's."""


@dataclass(frozen=True, slots=True)
class StepData:
    """What one rank reads in one optimizer step."""

    microbatches: list[Microbatch]
    """This rank's share, the same number on every rank."""
    samples_seen: int
    """Samples of the run up to the end of this step, on all ranks: the whole state to resume."""


class TrainingData:
    """Opens every dataset of the blend and deals its samples out.

    Args:
        data: blend, tokenizer, sequence length, packing, seed and threads.
        model: vocabulary and image geometry.
        micro_batch: rows of a microbatch.
        global_batch: rows of a step over all ranks.
        data_rank: which data-parallel rank this is.
        data_size: how many there are.
        needs_images: whether this rank's stage looks at images.

    Raises:
        ConfigError: the blend or the tokenizer is not set, or the batch does not divide.
        DataError: a dataset is missing, damaged, or made with another tokenizer.
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
        self._sampler = Sampler(
            _order(data, [len(reader) for reader in self.readers]),
            self.readers,
            num_rows=global_batch,
            sequence_length=data.sequence_length,
            visual_tokens=model.visual_tokens(),
            packing=data.packing,
        )
        self._pool = ThreadPoolExecutor(data.workers, "data") if data.workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, samples_seen: int) -> StepData:
        """What this rank reads in the step that starts after ``samples_seen`` samples.

        Raises:
            DataError: an image no longer decodes, and data.on_bad_image is stop.
        """
        draws, samples_seen = self._draws(samples_seen)
        return StepData([self._load(rows) for rows in draws], samples_seen)

    def iterate(self, samples_seen: int) -> Iterator[StepData]:
        """One step after the other, without end, read ahead by the threads.

        Raises:
            DataError: an image no longer decodes, and data.on_bad_image is stop.
        """
        if self._pool is None:
            while True:
                step = self.step(samples_seen)
                samples_seen = step.samples_seen
                yield step
        ahead = self._per_step + _LOOK_AHEAD * self._data.workers
        waiting: deque[Future[Microbatch]] = deque()
        ends: deque[int] = deque()
        try:
            while True:
                while len(waiting) < ahead:
                    draws, samples_seen = self._draws(samples_seen)
                    ends.append(samples_seen)
                    waiting.extend(self._pool.submit(self._load, rows) for rows in draws)
                loaded = [waiting.popleft().result() for _ in range(self._per_step)]
                yield StepData(loaded, ends.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads. Files stay mapped until the object goes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _draws(self, samples_seen: int) -> tuple[list[list[list[Draw]]], int]:
        """This rank's samples of the step, by microbatch and row, and the samples seen after it."""
        batch = self._sampler.at(samples_seen)
        share = batch.share(self._rank, self._ranks, self._micro_batch)
        return share, samples_seen + len(batch.samples)

    def _load(self, rows: Sequence[Sequence[Draw]]) -> Microbatch:
        return collate(
            [[self.readers[dataset].sample(sample) for dataset, sample in row] for row in rows],
            self._model,
            self._data.sequence_length,
            self._needs_images,
            self._data.on_bad_image,
        )


def _order(data: DataConfig, sizes: Sequence[int]) -> Blend:
    if data.by_epochs():
        return Blend.by_epochs(data.blend_shares(), sizes, data.seed)
    return Blend(data.blend_shares(), sizes, data.seed)


def open_blend(data: DataConfig, model: ModelConfig) -> tuple[IndexedReader, ...]:
    """Open the datasets of a blend and check that they were made for this run.

    Raises:
        ConfigError: the blend or the tokenizer is not set.
        DataError: a dataset cannot be used, or was made with another tokenizer.
    """
    if not data.blend:
        raise ConfigError("data.blend is empty. Name at least one dataset: [{path: PREFIX}].")
    if data.tokenizer is None:
        raise ConfigError(
            "data.tokenizer is not set. Give the tokenizer that the datasets were made with."
        )
    tokenizer = Tokenizer(data.tokenizer)
    # Hugging Face models often have more rows than their tokenizers have tokens.
    if tokenizer.vocab_size > model.language.vocab_size:
        raise DataError(
            f"data.tokenizer {data.tokenizer} has {tokenizer.vocab_size} tokens, but "
            f"model.language.vocab_size is {model.language.vocab_size}. Raise the second to "
            "the first, or use the model's tokenizer."
        )
    readers = tuple(IndexedReader(entry.path) for entry in data.blend)
    for reader in readers:
        if reader.manifest.tokenizer_sha256 != tokenizer.fingerprint():
            raise DataError(
                f"the dataset {reader.prefix} was made with another tokenizer "
                f"({reader.manifest.vocab_size} tokens) than data.tokenizer {data.tokenizer} "
                f"({tokenizer.vocab_size} tokens). Re-run tools/preprocess_data.py with this "
                "tokenizer, or set data.tokenizer to the one that made it."
            )
    return readers

"""Which datasets a run reads, in which proportion and at which length."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vila_mc.config.checks import STRICT, require

BadImage = Literal["stop", "substitute"]

_MOST_WORKERS = 1024
_MOST_HELD_OUT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendEntry:
    """One dataset of the mixture."""

    __pydantic_config__ = STRICT

    path: Path
    """Prefix of the indexed dataset: PREFIX.bin, PREFIX.idx and PREFIX.manifest.json."""
    weight: float | None = None
    """Share of the samples, relative to the other entries; 1 if neither this nor epochs is set."""
    epochs: float | None = None
    """Passes through the dataset, instead of a weight; all entries must then give them."""

    def __post_init__(self) -> None:
        require(
            self.weight is None or self.epochs is None,
            f"the dataset {self.path} has both a weight and epochs. Keep one of them.",
        )
        for name, value in (("weight", self.weight), ("epochs", self.epochs)):
            require(
                value is None or 0 < value < math.inf,
                f"the dataset {self.path} has the {name} {value}; it must be greater than 0.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The mixture and how samples become rows of a batch."""

    __pydantic_config__ = STRICT

    blend: tuple[BlendEntry, ...] = ()
    """Datasets, as a YAML list of {path, weight} or {path, epochs}."""
    validation: tuple[BlendEntry, ...] = ()
    """Datasets to measure the loss on, see train.validate_every: a YAML list of {path} or, to read
    only a part, {path, epochs: 0.1}. The same samples every time; nothing learns from them."""
    held_out: float = 0.0
    """Share of every dataset of data.blend that nothing learns from and the validation reads. Which
    samples follows from their numbers alone, so that they stay out in every run and blend."""
    blend_may_change: bool = False
    """On resume, go on with another data.blend or data.seed, from its beginning; otherwise a change
    is refused."""
    tokenizer: Path | None = None
    """What the datasets were made with: a SentencePiece .model, or a Hugging Face tokenizer.json or
    its folder."""
    sequence_length: int = 4096
    """Positions in a row, visual tokens included; the default is that of VILA at 7B."""
    packing: bool = False
    """Fill each row with several samples, which do not see each other. train.global_batch and
    train.micro_batch then count rows, and a step reads as many samples as fit."""
    seed: int = 1234
    """Decides the order of the samples, together with the position alone."""
    workers: int = 2
    """Processes of each rank that read and decode ahead of the training step; 0 decodes in the step
    itself."""
    on_bad_image: BadImage = "stop"
    """An image that can no longer be decoded: stop ends the run; substitute shows the model
    its tower's mean colour in its place, says so and counts it in metrics.jsonl."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 2,
            f"data.sequence_length is {self.sequence_length}; it must be at least 2.",
        )
        require(
            0 <= self.workers <= _MOST_WORKERS,
            f"data.workers is {self.workers}; it must be 0 or more, and at most {_MOST_WORKERS}.",
        )
        require(
            0 <= self.held_out <= _MOST_HELD_OUT,
            f"data.held_out is {self.held_out}; it is a share and must be between 0 and "
            f"{_MOST_HELD_OUT}.",
        )
        with_epochs = sum(entry.epochs is not None for entry in self.blend)
        require(
            with_epochs in (0, len(self.blend)),
            f"data.blend gives epochs for {with_epochs} of its {len(self.blend)} datasets. Give "
            "them for all, or use weights.",
        )

        for entry in self.validation:
            require(
                entry.weight is None and (entry.epochs is None or entry.epochs <= 1),
                f"data.validation reads {entry.path} once. Give it no weight, and epochs of at "
                "most 1 to read a part of it.",
            )

    def by_epochs(self) -> bool:
        """Whether the blend counts passes through its datasets rather than shares."""
        return bool(self.blend) and self.blend[0].epochs is not None

    def blend_shares(self) -> list[float]:
        """The epochs, or else the weights, of the blend's entries in order."""
        if self.by_epochs():
            return [entry.epochs or 0.0 for entry in self.blend]
        return [1.0 if entry.weight is None else entry.weight for entry in self.blend]

    def num_validation_sets(self) -> int:
        """Datasets of ``validation``, and those of ``blend`` that something is held out of."""
        return len(self.validation) + (len(self.blend) if self.held_out else 0)

    def validation_epochs(self) -> list[float]:
        """The share of what the validation has of each of its datasets that is read, in order."""
        of_sets = [1.0 if entry.epochs is None else entry.epochs for entry in self.validation]
        return of_sets + [1.0] * (self.num_validation_sets() - len(of_sets))

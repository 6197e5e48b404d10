"""Which datasets a run reads, in which proportion and at which length."""

from dataclasses import dataclass
from pathlib import Path

from vila_mc.config.model import STRICT, require


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendEntry:
    """One dataset of the mixture."""

    __pydantic_config__ = STRICT

    path: Path
    """Prefix of the indexed dataset: PREFIX.bin, PREFIX.idx and PREFIX.manifest.json."""
    weight: float = 1.0
    """Share of the samples, relative to the other entries."""

    def __post_init__(self) -> None:
        require(
            self.weight > 0,
            f"data.blend gives {self.path} the weight {self.weight}; it must be greater than 0.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The mixture and how samples become rows of a batch."""

    __pydantic_config__ = STRICT

    blend: tuple[BlendEntry, ...] = ()
    """Datasets with weights, as a YAML list of {path, weight}."""
    tokenizer: Path | None = None
    """SentencePiece .model that the datasets were made with."""
    sequence_length: int = 4096
    """Positions in a row, visual tokens included."""
    seed: int = 1234
    """Decides the order of the samples, together with the position alone."""
    workers: int = 2
    """Threads that read and decode ahead of the training step; 0 decodes in the step itself."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 2,
            f"data.sequence_length is {self.sequence_length}; it must be at least 2.",
        )
        require(self.workers >= 0, f"data.workers is {self.workers}; it must be 0 or more.")

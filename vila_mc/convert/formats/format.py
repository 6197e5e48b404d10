"""What every format has: one face, and what passes through it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.formats.export_source import ExportSource
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.names import Naming
from vila_mc.convert.proof.reloaded import LoadedModel, Loading

PartKind = FormatName | Literal["tower"]
"""What loads a directory: a format, or a vision tower of transformers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a proof of an import finds what was read."""

    parts: Mapping[PartKind, Path]
    """Directories that load on their own: a whole model, or a language model and a tower."""
    images: Path
    """Holds the image processor."""
    squares_first: ImageMode | None = None
    """How its users make an image square before that processor sees it, where they do."""
    image_size: int | None = None
    """Side of the images that it was made for; the import's if None."""
    vocab_size: int | None = None
    """Tokens of its vocabulary; the import's if None."""
    trust_pickle: bool = False
    """Whether weights are read from ``.bin`` files."""


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A whole model found in Hugging Face directories."""

    model: ModelConfig
    tensors: dict[str, LazyTensor]
    """Every parameter of the whole model by its training name."""
    tokenizer_dir: Path
    """Where its tokenizer's files are."""
    kind: str
    """What it was, for people."""
    origin: Origin
    has_added_tokens: bool = False
    """Whether a tokenizer.json with more tokens counts, and not the SentencePiece model beside."""

    def is_bf16(self) -> bool:
        """Whether bf16 holds every weight as it is."""
        return all(tensor.dtype == torch.bfloat16 for tensor in self.tensors.values())


class Format(Protocol):
    """A layout of files that models are written in and read from; a module of this package each."""

    @property
    def name(self) -> FormatName:
        """What users, docs and messages call it."""

    @property
    def model_type(self) -> str | None:
        """``model_type`` in config.json; None if that does not tell this format."""

    @property
    def sees_images(self) -> bool:
        """Whether it holds whole models, not a language model alone."""

    @property
    def naming(self) -> Naming:
        """What its tensors are called, and which connectors it can hold."""

    @property
    def has_own_code(self) -> bool:
        """Whether it comes with our own modelling file and processor, so that it can be asked."""

    @property
    def says_token_order(self) -> bool:
        """Whether its files say how the visual tokens of a connector with blocks are ordered."""

    def write(self, source: ExportSource, directory: Path) -> None:
        """Write weights, configs, tokenizer, and what else the format has.

        Raises:
            CheckpointError: the format cannot hold the model.
        """

    def read(
        self,
        directory: Path,
        config: ConfigValues,
        image_mode: ImageMode | None,
        *,
        trust_pickle: bool,
    ) -> ForeignModel:
        """The whole model in a directory, not read yet.

        Args:
            directory: in this format.
            config: its config.json.
            image_mode: how images become square; as the directory says if None.
            trust_pickle: whether weights may be read from ``.bin`` files.

        Raises:
            CheckpointError: something is missing, damaged, or not supported.
        """

    def load(self, directory: Path, loading: Loading, vocab_size: int) -> LoadedModel:
        """Load a directory for a proof, as its users would, in fp32.

        Args:
            directory: in this format.
            loading: how.
            vocab_size: tokens of the training model's vocabulary.

        Raises:
            ModelFaultError: weights are missing, or there are some that have no place; or it brings
                code that is not ours.
        """

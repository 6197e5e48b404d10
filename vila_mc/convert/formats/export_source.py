"""What a format writes from: a whole model, its tokenizer, and how the files shall be."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensors
from vila_mc.checkpoint.trained_template import DEFAULT
from vila_mc.config.model import ModelConfig
from vila_mc.convert.names import Table, language_table
from vila_mc.convert.proof.packaged_code import packaged_text
from vila_mc.convert.rename_tensors import their_shapes, to_hf, vocabulary_rows
from vila_mc.convert.tokenizer_source import TokenizerSource
from vila_mc.convert.weights import write_weights
from vila_mc.data.chat_templates import AnyTemplate
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

TokenIds = Mapping[str, int | None]
"""``bos_token_id``, ``eos_token_id``, ``pad_token_id``."""


@dataclass(frozen=True, slots=True)
class ExportSource:
    """Everything that a format writes from."""

    tensors: LazyTensors
    model: ModelConfig
    tokenizer: TokenizerSource
    dtype: torch.dtype
    max_shard_bytes: int
    template: AnyTemplate = DEFAULT
    """What the model was trained to chat with."""
    end_ids: tuple[int, ...] = ()
    """Tokens, besides EOS, that end an answer."""

    def require_squares(self, format: str) -> None:
        """Refuse a model that cuts images into tiles. Raises CheckpointError."""
        if self.model.vision.image_mode == "tiles":
            raise CheckpointError(
                f"{format} has no place for images cut into tiles (model.vision.image_mode). Use "
                "hf-vila or, without images, llm."
            )

    def dtype_name(self) -> str:
        """As Hugging Face calls the number format."""
        return DTYPE_NAMES[self.dtype]

    def token_ids(self) -> TokenIds:
        """Ids of special tokens."""
        return self.tokenizer.token_ids()

    def generation_json(self) -> dict[str, Any]:
        """generation_config.json: greedy, until EOS or what ends an answer in its place."""
        ends = [self.token_ids()["eos_token_id"], *self.end_ids]
        known = list(dict.fromkeys(token for token in ends if token is not None))
        eos = {"eos_token_id": known} if len(known) > 1 else {}
        return {**self.token_ids(), **eos, "do_sample": False}

    def write_weights(
        self, directory: Path, parts: Sequence[Table], unread: Mapping[str, Shape] | None = None
    ) -> None:
        """Weights of some parts, and of what no feature passes through."""
        names = {row.ours for part in parts for row in part.rows}
        # Only a whole model must use every tensor that is there.
        is_whole = any(name.startswith("vision.") for name in names) and any(
            name.startswith("language.") for name in names
        )
        source = {n: t for n, t in self.tensors.items() if is_whole or n in names}
        unread = unread or {}
        stream = itertools.chain(to_hf(source, parts), _unread_tensors(unread))
        shapes = {**their_shapes(parts), **unread}
        write_weights(stream, shapes, directory, self.dtype, self.max_shard_bytes)

    def language_part(self, prefix: str = "", placed_vocab: int | None = None) -> Table:
        """The table of the language model, for vocabulary tables as these are."""
        return language_table(
            self.model.language,
            prefix,
            padded_vocab=vocabulary_rows(self.tensors),
            placed_vocab=placed_vocab,
        )


def write_packaged(directory: Path, name: str) -> None:
    """Write a file that is the same in every export."""
    (directory / name).write_text(packaged_text(name), encoding="utf-8")


def _unread_tensors(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """Norms of ones, and zeros, with which the layer hands on what it gets."""
    for name, shape in shapes.items():
        is_norm = "norm" in name and name.endswith("weight")
        yield name, torch.full(shape, float(is_norm))

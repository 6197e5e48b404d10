"""Write a whole model, or its language model alone, in a format that others load."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensors, Shape
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats import configs
from vila_mc.convert.formats.configs import DTYPE_NAMES
from vila_mc.convert.formats.model_card import model_card
from vila_mc.convert.names import (
    LLAVA,
    OFFICIAL,
    REMOTE_CODE,
    Table,
    connector_table,
    language_table,
    tables,
    unread_shapes,
    vision_table,
)
from vila_mc.convert.output_directory import output_directory, write_json
from vila_mc.convert.rename_tensors import their_shapes, to_hf, vocabulary_rows
from vila_mc.convert.tokenizer_source import TokenizerSource, open_tokenizer
from vila_mc.convert.weights import read_json, write_weights
from vila_mc.errors import CheckpointError

Format = Literal["hf-vila", "hf-llava", "vila", "llm"]
FORMATS: tuple[Format, ...] = ("hf-vila", "hf-llava", "vila", "llm")
DEFAULT_SHARD_BYTES = 5 * 10**9

_CHAT_TEMPLATE = "chat_template.jinja"
_REMOTE_CODE = (
    "configuration_vila.py",
    "modeling_vila.py",
    "image_processing_vila.py",
    "processing_vila.py",
    _CHAT_TEMPLATE,
)


@dataclass(frozen=True, slots=True)
class _Export:
    """Everything that a format writes from."""

    tensors: LazyTensors
    model: ModelConfig
    tokenizer: TokenizerSource
    dtype: torch.dtype
    max_shard_bytes: int

    def token_ids(self) -> dict[str, int | None]:
        return self.tokenizer.token_ids()

    def write_weights(
        self, directory: Path, parts: Sequence[Table], unread: dict[str, Shape] | None = None
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
        shapes = their_shapes(parts) | unread
        write_weights(stream, shapes, directory, self.dtype, self.max_shard_bytes)

    def language_part(self, prefix: str = "", placed_vocab: int | None = None) -> Table:
        rows = vocabulary_rows(self.tensors)
        return language_table(
            self.model.language, prefix, padded_vocab=rows, placed_vocab=placed_vocab
        )


def export_hf(
    tensors: LazyTensors,
    model: ModelConfig,
    tokenizer_path: Path,
    output: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    format: Format = "hf-vila",
) -> None:
    """Write weights, configs, tokenizer, and what else a format has.

    The directory appears whole or not at all. Tensors are read and written one by one. Run
    ``verify_export`` on it before relying on it.

    Args:
        tensors: every parameter of a whole ``VilaModel``.
        model: its shape.
        tokenizer_path: the tokenizer that the data was made with, as ``open_tokenizer`` takes it.
        output: directory to write; an earlier export there is replaced.
        dtype: float32 or bfloat16.
        max_shard_bytes: most bytes in one weight file.
        format: hf-vila (our modelling file, every connector), hf-llava
            (LlavaForConditionalGeneration), vila (directory of the public VILA code), llm (the
            language model alone).

    Raises:
        CheckpointError: the state does not fit the model, the format cannot hold it, the tokenizer
            cannot be converted, or something that is not an export of ours stands at ``output``.
    """
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"an export cannot be {dtype}; choose {' or '.join(DTYPE_NAMES.values())}."
        )
    tokenizer = open_tokenizer(tokenizer_path, model.language.vocab_size)
    export = _Export(tensors, model, tokenizer, dtype, max_shard_bytes)
    write = {"hf-vila": _hf_vila, "hf-llava": _hf_llava, "vila": _official, "llm": _language}
    with output_directory(output, {"format": format}) as directory:
        write[format](export, directory)


def _hf_vila(export: _Export, directory: Path) -> None:
    """A directory that loads with its own modelling file (trust_remote_code)."""
    model, token_ids = export.model, export.token_ids()
    parts = tables(model, REMOTE_CODE, padded_vocab=vocabulary_rows(export.tensors))
    export.write_weights(directory, parts)
    export.tokenizer.write(
        directory, model.language.max_positions, processor="VilaProcessor", with_image=False
    )
    for name in _REMOTE_CODE:
        _write_packaged(directory, name)
    config = configs.remote_code_json(model, export.dtype, token_ids)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {**token_ids, "do_sample": False})
    preprocessor = configs.remote_preprocessor_json(model)
    write_json(directory / "preprocessor_config.json", preprocessor)
    write_json(directory / "processor_config.json", configs.remote_processor_json(model))
    card = model_card(model, their_shapes(parts), needs_remote_code=True)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _hf_llava(export: _Export, directory: Path) -> None:
    """A LlavaForConditionalGeneration of transformers itself."""
    model, token_ids = export.model, export.token_ids()
    # The placeholder is looked up in the embedding, so it needs a row there.
    image_token = export.tokenizer.image_token()
    rows = max(model.language.vocab_size, image_token + 1)
    parts = [
        vision_table(model.vision, LLAVA.vision),
        connector_table(model, LLAVA),
        export.language_part(LLAVA.language, rows),
    ]
    export.write_weights(directory, parts, unread_shapes(model.vision, LLAVA.vision))
    export.tokenizer.write(
        directory, model.language.max_positions, processor="LlavaProcessor", with_image=True
    )
    _write_packaged(directory, _CHAT_TEMPLATE)
    config = configs.llava_json(model, export.dtype, token_ids, image_token, rows)
    write_json(directory / "config.json", config)
    # Its row of the output layer is zeros, which must never win.
    generation = {**token_ids, "do_sample": False, "suppress_tokens": [image_token]}
    write_json(directory / "generation_config.json", generation)
    preprocessor = configs.llava_preprocessor_json(model)
    write_json(directory / "preprocessor_config.json", preprocessor)
    write_json(directory / "processor_config.json", configs.llava_processor_json(model))
    card = model_card(model, their_shapes(parts), needs_remote_code=False)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _official(export: _Export, directory: Path) -> None:
    """llm/, vision_tower/, mm_projector/ and a config above them, as the public VILA code has."""
    model, token_ids, dtype = export.model, export.token_ids(), export.dtype
    projector = connector_table(model, OFFICIAL)  # refuses before anything is written
    for name in ("llm", "vision_tower", "mm_projector"):
        (directory / name).mkdir()
    _language(export, directory / "llm")
    _tell_chat_template(directory / "llm")
    tower = directory / "vision_tower"
    unread = unread_shapes(model.vision, OFFICIAL.vision)
    export.write_weights(tower, [vision_table(model.vision, OFFICIAL.vision)], unread)
    write_json(tower / "config.json", configs.official_vision_json(model, dtype))
    write_json(tower / "preprocessor_config.json", configs.official_preprocessor_json(model))
    export.write_weights(directory / "mm_projector", [projector])
    projector_config = configs.official_projector_json(model, dtype)
    write_json(directory / "mm_projector" / "config.json", projector_config)
    write_json(directory / "config.json", configs.official_json(model, dtype, token_ids))


def _language(export: _Export, directory: Path) -> None:
    """The language model alone."""
    model, token_ids = export.model, export.token_ids()
    export.write_weights(directory, [export.language_part()])
    export.tokenizer.write(
        directory, model.language.max_positions, processor=None, with_image=False
    )
    config = configs.official_language_json(model, export.dtype, token_ids)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {**token_ids, "do_sample": False})


def _tell_chat_template(directory: Path) -> None:
    """Where the transformers of the public code looks for it, which reads no file of its own."""
    (directory / _CHAT_TEMPLATE).unlink(missing_ok=True)
    where = directory / "tokenizer_config.json"
    write_json(where, {**read_json(where), "chat_template": _packaged(_CHAT_TEMPLATE)})


def _unread_tensors(shapes: dict[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """Norms of ones, and zeros, with which the layer hands on what it gets."""
    for name, shape in shapes.items():
        is_norm = "norm" in name and name.endswith("weight")
        yield name, torch.full(shape, float(is_norm))


def _write_packaged(directory: Path, name: str) -> None:
    (directory / name).write_text(_packaged(name), encoding="utf-8")


def _packaged(name: str) -> str:
    folder = resources.files("vila_mc.convert.formats") / "remote_code"
    return (folder / name).read_text(encoding="utf-8")

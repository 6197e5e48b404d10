"""A published model as a directory that training starts from."""

import os
from pathlib import Path
from typing import Any

from vila_mc.checkpoint.manifest import TemplateRecord
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.convert.chat_template import published_template
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.import_directory import TOKENIZER_NAME, import_directory, write_recipe
from vila_mc.convert.tokenizer_source import copy_tokenizer
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import VilaError

_LONGEST_ROW = 4096


def import_checkpoint(source: ForeignModel, output: Path, precision: str | None = None) -> Path:
    """Write a checkpoint of step 0, the tokenizer, and a recipe with the model section.

    Args:
        source: what was found.
        output: directory to write into: ``step-00000000``, ``tokenizer``, ``model.yaml``.
        precision: fp32 or bf16; bf16 if None and every weight is bf16 already, else fp32, which
            holds fp16 exactly.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: ``output`` holds something already, a weight is missing or no number, or
            the tokenizer is damaged; nothing is left then.
    """
    if precision is None:
        precision = "bf16" if source.is_bf16() else "fp32"
    output = Path(os.path.abspath(output))  # the recipe is used from other folders, too
    with import_directory(output):
        # The checkpoint last: what stands there when it appears is complete.
        tokenizer = copy_tokenizer(
            source.tokenizer_dir, output / TOKENIZER_NAME, has_added_tokens=source.has_added_tokens
        )
        config = run_of(source, precision, output, tokenizer)
        values = run_to_dict(config)
        recipe: dict[str, Any] = {"model": values["model"]}
        if tokenizer is not None:
            recipe["data"] = {"tokenizer": values["data"]["tokenizer"]}
        write_recipe(output, recipe)
        template = _template(source.tokenizer_dir, tokenizer)
        origin = str(source.tokenizer_dir)
        return write_weights_checkpoint(config, source.tensors, origin, template=template)


def _template(directory: Path, tokenizer: Path | None) -> TemplateRecord | None:
    """What is recorded of the chat template that a source brings."""
    try:
        opened = None if tokenizer is None else Tokenizer(tokenizer)
    except VilaError:  # a proof says what is wrong with it
        opened = None
    found = published_template(directory, opened)
    return None if found is None else found.describe()


def run_of(
    source: ForeignModel, precision: str, output: Path | None = None, tokenizer: Path | None = None
) -> RunConfig:
    """A run of a published model.

    Args:
        source: what was found.
        precision: fp32 or bf16.
        output: its ``train.output``; the default if None.
        tokenizer: its ``data.tokenizer``.
    """
    length = min(_LONGEST_ROW, source.model.language.max_positions)
    return run_from_dict(
        {
            "model": source.model,
            "data": {"tokenizer": tokenizer, "sequence_length": length},
            "train": {"precision": precision, "phase": "custom"}
            | ({} if output is None else {"output": output}),
        }
    )

"""A published model as a directory that training starts from."""

from pathlib import Path
from typing import Any

import yaml

from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.tokenizer_source import copy_tokenizer

RECIPE_NAME = "model.yaml"
TOKENIZER_NAME = "tokenizer"
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
        CheckpointError: there is a checkpoint already, a weight is missing or no number, or the
            tokenizer is damaged.
    """
    if precision is None:
        precision = "bf16" if source.is_bf16() else "fp32"
    # Written first: what stands there when the checkpoint appears is complete.
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = copy_tokenizer(source.tokenizer_dir, output / TOKENIZER_NAME)
    config = _run(source, output, tokenizer, precision)
    values = run_to_dict(config)
    recipe: dict[str, Any] = {"model": values["model"]}
    if tokenizer is not None:
        recipe["data"] = {"tokenizer": values["data"]["tokenizer"]}
    text = yaml.safe_dump(recipe, sort_keys=False)
    (output / RECIPE_NAME).write_text(text, encoding="utf-8")
    return write_weights_checkpoint(config, source.tensors, str(source.tokenizer_dir))


def _run(source: ForeignModel, output: Path, tokenizer: Path | None, precision: str) -> RunConfig:
    return run_from_dict(
        {
            "model": source.model,
            "data": {
                "tokenizer": tokenizer,
                "sequence_length": min(_LONGEST_ROW, source.model.language.max_positions),
            },
            "train": {"output": output, "precision": precision, "phase": "custom"},
        }
    )

"""PEFT's adapters beside a checkpoint: one of adapters, which training and asking go on from."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vila_mc.checkpoint.base import record_of
from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.manifest import Manifest, resolve_checkpoint
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.checkpoint.trained_template import template_of
from vila_mc.config.load import run_to_dict
from vila_mc.convert.import_checkpoint import RECIPE_NAME
from vila_mc.convert.peft_format import WEIGHTS, factors, format_of, lora_of, read_config
from vila_mc.convert.rename_tensors import check_tensors
from vila_mc.convert.weights import open_safetensors
from vila_mc.errors import CheckpointError, ConfigError


def import_adapters(adapters: Path, base: Path, output: Path) -> Path:
    """Write a checkpoint of step 0 that holds adapters beside a base, and a recipe.

    Args:
        adapters: a directory of PEFT.
        base: a checkpoint of the model that they were trained beside; its weights are not copied.
        output: directory to write into: ``step-00000000``, ``model.yaml``.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: there is a checkpoint already; or the adapters are damaged, or of another
            model, or hold what is not computed here; it names what.
    """
    output = Path(os.path.abspath(output))
    directory = resolve_checkpoint(base)
    manifest = Manifest.read(directory)
    if manifest.config.lora.parts():
        raise CheckpointError(
            f"{directory} has adapters already, and others cannot stand beside them. Give the "
            "checkpoint that they stand beside."
        )
    rank, alpha, dropout = read_config(adapters)
    tensors = open_safetensors(adapters / WEIGHTS)
    format = format_of(tensors)
    lora = lora_of(tensors, rank, alpha, dropout, format)
    try:
        train = replace(manifest.config.train, output=output, load=directory, trainable=())
        config = replace(manifest.config, lora=lora, train=train)
    except ConfigError as error:
        raise CheckpointError(f"the adapters in {adapters} cannot be used: {error}") from None
    places = list(factors(config.model, lora, format))
    expected = {factor.theirs: factor.shape for factor in places}
    check_tensors(tensors, expected, str(adapters / WEIGHTS))
    found: Mapping[str, LazyTensor] = {each.ours: tensors[each.theirs] for each in places}
    output.mkdir(parents=True, exist_ok=True)
    values = run_to_dict(config)
    recipe: dict[str, Any] = {"model": values["model"], "lora": values["lora"]}
    recipe["train"] = {"trainable": []}
    (output / RECIPE_NAME).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return write_weights_checkpoint(
        config,
        found,
        str(adapters),
        template=template_of(manifest),
        base=record_of(directory, manifest, output),
    )

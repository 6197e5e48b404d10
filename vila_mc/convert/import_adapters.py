"""PEFT's adapters beside a checkpoint: one of adapters, which training and asking go on from."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vila_mc.checkpoint.base_place import record_of
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.needed import mark_needed
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.checkpoint.trained_template import template_of
from vila_mc.config.load import run_to_dict
from vila_mc.config.optimizer import OptimizerConfig
from vila_mc.config.run import RunConfig
from vila_mc.convert.formats.registry import FormatName, find_format
from vila_mc.convert.import_directory import import_directory, write_recipe
from vila_mc.convert.names import connector_table
from vila_mc.convert.peft_format import (
    IN_FRONT,
    WEIGHTS,
    adapted_modules,
    factors,
    format_of,
    linear_modules,
    lora_of,
    read_config,
)
from vila_mc.convert.rename_tensors import check_tensors, from_hf, their_shapes
from vila_mc.convert.weights import open_safetensors
from vila_mc.errors import CheckpointError, ConfigError, say
from vila_mc.model.megatron_config import DTYPES

_PICKLE = "adapter_model.bin"


def import_adapters(adapters: Path, base: Path, output: Path) -> Path:
    """Write a checkpoint of step 0 that holds adapters beside a base, and a recipe.

    Args:
        adapters: a directory of PEFT.
        base: a checkpoint of the model that they were trained beside; its weights are not copied.
        output: directory to write into: ``step-00000000``, ``model.yaml``.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: ``output`` holds something already; or the adapters are damaged, or of
            another model, or hold what is not computed here; it names what.
    """
    output = Path(os.path.abspath(output))
    directory = resolve_checkpoint(Path(os.path.abspath(base)))
    manifest = Manifest.read(directory)
    if manifest.config.lora.parts():
        raise CheckpointError(
            f"{directory} has adapters already, and others cannot stand beside them. Give the "
            "checkpoint that they stand beside."
        )
    said = read_config(adapters)
    tensors = _open(adapters)
    format = format_of(tensors)
    modules = adapted_modules(tensors)
    lora = lora_of(modules, said, format)
    learned: tuple[str, ...] = ("connector",) if said.has_connector else ()
    try:
        train = replace(manifest.config.train, output=output, load=directory, trainable=learned)
        data = replace(manifest.config.data, tokenizer=_tokenizer_of(manifest))
        # Rates of the base's run may be of parts that do not learn here.
        config = replace(
            manifest.config, lora=lora, train=train, data=data, optimizer=OptimizerConfig()
        )
    except ConfigError as error:
        raise CheckpointError(f"the adapters in {adapters} cannot be used: {error}") from None
    found = _placed(tensors, config, format, str(adapters / WEIGHTS))
    said.targets.require_same(modules, linear_modules(config.model, format))
    with import_directory(output):
        write_recipe(output, _recipe(config))
        path = write_weights_checkpoint(
            config,
            found,
            str(adapters),
            template=template_of(manifest),
            base=record_of(directory, manifest, output),
        )
        mark_needed(directory, output)
    return path


def rounding_line(adapters: Path, checkpoint: Path) -> str | None:
    """One line if a checkpoint of ``import_adapters`` holds other numbers than PEFT's file."""
    precision = Manifest.read(checkpoint).config.train.precision
    theirs = {tensor.dtype for tensor in _open(adapters).values()}
    kept = DTYPES[precision]
    wider = [each for each in theirs if torch.promote_types(each, kept) != kept]
    if not wider:
        return None
    given = str(wider[0]).removeprefix("torch.")
    return f"the adapters are {given}, and were rounded to {precision}, as the base is"


def _tokenizer_of(manifest: Manifest) -> Path | None:
    """That of the base by a path that holds from every folder; None, and a line, if it is gone."""
    named = manifest.config.data.tokenizer
    if named is None or named.exists():
        return None if named is None else Path(os.path.abspath(named))
    say(
        f"the tokenizer {named}, which the base was trained with, is not there, so the recipe "
        "names none: set data.tokenizer to where it is now"
    )
    return None


def _recipe(config: RunConfig) -> dict[str, Any]:
    """What a run that goes on from the adapters says, besides its data."""
    values = run_to_dict(config)
    recipe = {"model": values["model"], "lora": values["lora"]}
    recipe["train"] = {"trainable": list(config.train.trainable)}
    if config.data.tokenizer is not None:
        recipe["data"] = {"tokenizer": values["data"]["tokenizer"]}
    return recipe


def _open(adapters: Path) -> dict[str, LazyTensor]:
    """The tensors of a directory of PEFT. Raises CheckpointError: it holds none that are read."""
    if not (adapters / WEIGHTS).exists():
        if (adapters / _PICKLE).exists():
            raise CheckpointError(
                f"{adapters} holds its adapters in {_PICKLE}, a pickle, which can run code when it "
                "is opened and is never read. Load them with peft where they are trusted, and save "
                "them as safetensors: save_pretrained(..., safe_serialization=True)."
            )
        raise CheckpointError(f"there is no {WEIGHTS} in {adapters}. Give what peft saved.")
    return open_safetensors(adapters / WEIGHTS)


def _placed(
    tensors: LazyTensors, config: RunConfig, format: FormatName, where: str
) -> dict[str, LazyTensor]:
    """The tensors of PEFT by our names: adapters, and the connector where it learns.

    Raises:
        CheckpointError: one is missing, surplus or mis-shaped.
    """
    places = list(factors(config.model, config.lora, format))
    expected = {factor.theirs: factor.shape for factor in places}
    naming = find_format("hf-vila").naming
    connector = [connector_table(config.model, naming)] if config.train.trainable else []
    saved = {f"{IN_FRONT}{name}": shape for name, shape in their_shapes(connector).items()}
    check_tensors(tensors, expected | saved, where)
    found = {each.ours: tensors[each.theirs] for each in places}
    theirs = {name.removeprefix(IN_FRONT): tensors[name] for name in saved}
    return found | from_hf(theirs, connector, where)

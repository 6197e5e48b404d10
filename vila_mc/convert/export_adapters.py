"""Export the adapters of a checkpoint in PEFT's format, and prove them beside their base."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.base_place import base_directory
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.lazy import Reading
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.places import places_of
from vila_mc.checkpoint.require_intact import stored_shapes
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.config.lora import is_adapter
from vila_mc.config.run import RunConfig
from vila_mc.convert.formats.registry import FormatName, find_format
from vila_mc.convert.formats.write_export import ADAPTERS, write_export
from vila_mc.convert.names import Table, connector_table
from vila_mc.convert.output_directory import output_directory
from vila_mc.convert.peft_format import (
    CONFIG,
    IN_FRONT,
    WEIGHTS,
    config_json,
    factors,
    format_of,
    require_known_format,
)
from vila_mc.convert.proof.compare import Differences, compare_adapters
from vila_mc.convert.proof.fresh_request import require_installed
from vila_mc.convert.proof.reference import image_token_of, proving_model, reference_of
from vila_mc.convert.safetensors_writer import SafetensorsWriter
from vila_mc.convert.weights import open_safetensors
from vila_mc.errors import CheckpointError, ConfigError, say
from vila_mc.files import write_json
from vila_mc.model.megatron_config import DTYPES
from vila_mc.topology.shapes import Shape, model_parameters

_MOST_NAMES = 3


def require_provable(checkpoint: Path, tokenizer: Path | None = None) -> None:
    """Refuse a proof of adapters that could not run, before they are written.

    Args:
        checkpoint: what is to be exported.
        tokenizer: the one that the checkpoint was trained with if None.

    Raises:
        SetupError: a package is not installed.
        ConfigError: no tokenizer is known.
        CheckpointError: the checkpoint is damaged.
    """
    require_installed("transformers", "peft", "accelerate")
    _tokenizer_of(Manifest.read(resolve_checkpoint(checkpoint)), tokenizer)


def export_adapters(
    checkpoint: Path,
    output: Path,
    format: FormatName = "hf-vila",
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the adapters of a checkpoint, and the connector where it learned, for PEFT.

    Args:
        checkpoint: a step-* directory, or a directory of them.
        output: directory to write.
        format: of the export of the base that they will be beside.
        dtype: as it was trained if None.

    Raises:
        CheckpointError: the checkpoint is damaged, holds no adapters, or more than PEFT's files
            hold; adapters are not written for the format.
    """
    require_known_format(format)
    directory = resolve_checkpoint(checkpoint)
    manifest = Manifest.read(directory)
    config = manifest.config
    wanted = list(factors(config.model, config.lora, format))
    if not wanted:
        has_others = bool(config.lora.parts())
        advice = "Use hf-vila." if has_others else "Export its weights."
        raise CheckpointError(
            f"{directory} holds no adapters that {format} has a place for. {advice}",
            option="format" if has_others else "adapters",
        )
    learned = _learned(directory, config)
    held = {name for name in learned if format != "llm" or name.startswith("language.")}
    _require_a_connector_alone(held, directory)
    has_connector = bool(held)
    if format == "llm":
        _say_what_is_left_out(learned, config)
    dtype = dtype or DTYPES[config.train.precision]
    tensors = open_whole(directory, manifest)
    table = connector_table(config.model, find_format("hf-vila").naming) if has_connector else None
    shapes: dict[str, Shape] = {factor.theirs: factor.shape for factor in wanted}
    if table is not None:
        shapes |= {f"{IN_FRONT}{name}": shape for name, shape in table.their_shapes().items()}
    state = Reading(tensors, str(directory))
    arriving = ((factor.theirs, state[factor.ours]) for factor in wanted)
    with output_directory(output, {"format": format, "kind": ADAPTERS}) as partial:
        with SafetensorsWriter(partial / WEIGHTS, shapes, dtype) as file:
            for name, tensor in itertools.chain(arriving, _connector(state, table)):
                file.write(name, tensor)
        names = [factor.theirs for factor in wanted]
        values = config_json(config.lora, format, names, has_connector=has_connector)
        write_json(partial / CONFIG, values)


def prove_adapters(
    checkpoint: Path, adapters: Path, folder: Path, tokenizer: Path | None = None
) -> Differences:
    """Load the base's export and the adapters with PEFT in a fresh process, and compare.

    Args:
        checkpoint: what was exported, or what an import wrote.
        adapters: a directory of PEFT.
        folder: where the export of the base, in the format that the adapters are of, stands for as
            long as it takes.
        tokenizer: the one that the checkpoint was trained with if None.

    Raises:
        ConfigError: no tokenizer is known.
        CheckpointError: they compute something else, or do not load.
    """
    directory = resolve_checkpoint(checkpoint)
    manifest = Manifest.read(directory)
    base = base_directory(directory, manifest)
    assert base is not None, "export_adapters has looked"
    tokenizer = _tokenizer_of(manifest, tokenizer)
    tensors = open_safetensors(adapters / WEIGHTS)
    dtype, format = next(iter(tensors.values())).dtype, format_of(tensors)
    model = Manifest.read(base).config.model
    with tempfile.TemporaryDirectory(dir=folder, prefix=".base-") as scratch:
        export = Path(scratch) / "base"
        write_export(open_checkpoint(base, model), model, tokenizer, export, dtype, format=format)
        with proving_model(checkpoint, dtype, is_streamed=False, is_folded=False) as proving:
            reference = reference_of(
                proving,
                has_images=find_format(format).sees_images,
                reserved_token=image_token_of(export),
            )
        return compare_adapters(export, adapters, reference)


def _learned(directory: Path, config: RunConfig) -> set[str]:
    """What a checkpoint holds besides adapters: it learned, or was not loaded from a base."""
    stored = stored_shapes(directory)
    return {
        each.name
        for each in model_parameters(config.model, config.lora)
        if not is_adapter(each.name) and places_of(each)[0].key in stored
    }


def _say_what_is_left_out(learned: set[str], config: RunConfig) -> None:
    """One line about what the format llm has no place for, if there is any."""
    others = ("vision", "connector")
    adapters = [f"adapters of {part}" for part in config.lora.parts() if part in others]
    weights = [
        f"weights of {part}"
        for part in others
        if any(name.startswith(f"{part}.") for name in learned)
    ]
    if adapters or weights:
        say(
            f"left out, as the format llm is the language model alone: "
            f"{', '.join([*adapters, *weights])}"
        )


def _require_a_connector_alone(learned: set[str], directory: Path) -> None:
    """Refuse to leave out what else learned besides adapters. Raises CheckpointError."""
    others = sorted(name for name in learned if not name.startswith("connector."))
    if others:
        more = f" and {len(others) - _MOST_NAMES} more" if len(others) > _MOST_NAMES else ""
        raise CheckpointError(
            f"{directory} holds more than adapters and a connector: "
            f"{', '.join(others[:_MOST_NAMES])}{more} learned, or did not come from train.load. "
            "Merge the adapters into an export of all."
        )


def _connector(state: Reading, table: Table | None) -> Iterator[tuple[str, Tensor]]:
    if table is None:
        return
    for row in table.rows:
        for name, tensor in row.split(state[row.ours], table.sizes).items():
            yield f"{IN_FRONT}{name}", tensor


def _tokenizer_of(manifest: Manifest, given: Path | None) -> Path:
    tokenizer = given or manifest.config.data.tokenizer
    if tokenizer is None:
        raise ConfigError("the checkpoint names no tokenizer. Give one.", option="tokenizer")
    return tokenizer

"""Whole models in one directory: which format it is, and its tensors part by part."""

from dataclasses import replace
from pathlib import Path

from vila_mc.checkpoint.lazy import LazyTensors
from vila_mc.config.connectors import TokenOrder
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.formats.format import ForeignModel, Format, Origin
from vila_mc.convert.formats.registry import FORMATS, find_format
from vila_mc.convert.names import Naming, connector_table
from vila_mc.convert.read_parts import join_language, join_vision, settle_head, within
from vila_mc.convert.rename_tensors import check_tensors, from_hf
from vila_mc.convert.weights import read_json
from vila_mc.errors import CheckpointError


def read_whole(
    directory: Path,
    image_mode: ImageMode | None = None,
    *,
    token_order: TokenOrder | None = None,
    trust_pickle: bool = False,
) -> ForeignModel:
    """A whole model in any format that holds one.

    Args:
        directory: holds a config.json that says which.
        image_mode: how images become square; as the directory says if None.
        token_order: how the visual tokens of a connector with blocks follow each other, where no
            file says so; by the age of the directory if None.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported, or ``token_order`` is
            given of a directory that says it.
    """
    where = directory / "config.json"
    config = ConfigValues(read_json(where), where)
    format = whole_format(config)
    if format is None:
        known = ", ".join(str(format.model_type) for format in _whole_formats())
        raise CheckpointError(
            f"{where}: model_type is {config.get('model_type')}; a whole model is one of {known}. "
            "Give a language model and a vision tower each on its own to put them together."
        )
    found = format.read(directory, config, image_mode, trust_pickle=trust_pickle)
    return found if token_order is None else _with_token_order(found, token_order, format)


def _with_token_order(found: ForeignModel, order: TokenOrder, format: Format) -> ForeignModel:
    connector = found.model.connector
    if format.says_token_order or connector.facts().block == 1:
        raise CheckpointError(
            f"token_order is {order}, but "
            + (
                f"a directory of the format {format.name} says it itself"
                if format.says_token_order
                else f"the connector {connector.title()} keeps the order of the patches"
            )
            + ". Leave it out."
        )
    model = replace(found.model, connector=replace(connector, token_order=order))
    return replace(found, model=model)


def whole_format(config: ConfigValues) -> Format | None:
    """The format of the whole model that a config.json describes; None if it describes another."""
    kind = config.get("model_type")
    return next((format for format in _whole_formats() if format.model_type == kind), None)


def _whole_formats() -> list[Format]:
    return [format for format in map(find_format, FORMATS) if format.model_type is not None]


def assemble_whole(
    directory: Path,
    model: ModelConfig,
    tensors: LazyTensors,
    naming: Naming,
    placed_vocab: int | None = None,
    *,
    trust_pickle: bool,
) -> ForeignModel:
    """A whole model out of the tensors of one directory; one that is in no part is refused.

    Args:
        directory: where they are from.
        model: its shape.
        tensors: names and tensors, which ``naming`` divides into parts.
        naming: of its format.
        placed_vocab: rows of its vocabulary tables, where there are more than tokens.
        trust_pickle: whether weights are read from ``.bin`` files.

    Raises:
        CheckpointError: names or shapes are not those of the model.
    """
    prefixes = [
        f"{name.partition('.')[0]}." for name in (naming.vision, naming.connector, naming.language)
    ]
    expected = {name: t.shape for name, t in tensors.items() if name.startswith(tuple(prefixes))}
    check_tensors(tensors, expected, str(directory))
    vision, connector, language = (within(tensors, prefix) for prefix in prefixes)
    settled = settle_head(language, model.language, str(directory))
    model = replace(model, language=settled)
    table = connector_table(model, naming.within_parts())
    joined = join_vision(vision, model.vision, f"{directory} (vision)")
    joined |= from_hf(connector, [table], f"{directory} (connector)")
    joined |= join_language(language, model.language, f"{directory} (language)", placed_vocab)
    origin = Origin({naming.format: directory}, directory, trust_pickle=trust_pickle)
    return ForeignModel(model, joined, directory, naming.format, origin)

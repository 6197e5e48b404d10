"""The one table of names between the training model and Hugging Face, read both ways.

Training names are the parameter names of a whole ``VilaModel`` (no tensor or pipeline
parallelism, global layer numbers). Hugging Face names are those within a part: a language model as
transformers' ...ForCausalLM has them, a vision tower without ``vision_model.``, a connector as each
format spells it, where its rows stand. A ``Naming`` says where a format puts the parts. The rows of
towers and language models stand with their families.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vila_mc.config.connectors import ConnectorKind
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig
from vila_mc.convert.families.language import HEAD
from vila_mc.convert.families.registry import LANGUAGES, TOWERS
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.transforms import Rename, Row, Sizes
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape

ConnectorRows = Callable[[ModelConfig], tuple[Row, ...] | None]
"""Rows of the connector of a model; None where a format cannot hold it with these options."""


def connector_rows(called: Callable[[ModelConfig, str], str] | None = None) -> ConnectorRows:
    """Rows of a connector, given what a format calls its layers: the same as we do if None."""

    def rows(model: ModelConfig) -> tuple[Row, ...]:
        found = []
        for layer in model.connector_layers():
            theirs = layer.name if called is None else called(model, layer.name)
            for part, shape in layer.parameters().items():
                letters = " ".join(map(str, shape))
                found.append(Rename(f"connector.{layer.name}.{part}", f"{theirs}.{part}", letters))
        return tuple(found)

    return rows


@dataclass(frozen=True, slots=True)
class Naming:
    """What a format calls the parts of a model and the connectors that it can hold."""

    format: FormatName
    """Its name."""
    vision: str
    """In front of the names of the vision tower."""
    connector: str
    """In front of the names of the connector."""
    language: str
    """In front of the names of the language model."""
    connectors: Mapping[ConnectorKind, ConnectorRows]
    """Rows of each connector that it knows."""

    def within_parts(self) -> "Naming":
        """The same for names within a part."""
        return replace(self, vision="", connector="", language="")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one part of a model, one per parameter, with the sizes of that model."""

    rows: tuple[Row, ...]
    sizes: Sizes

    def our_shapes(self) -> dict[str, Shape]:
        """Every training parameter and its shape."""
        return {row.ours: row.our_shape(self.sizes) for row in self.rows}

    def their_shapes(self) -> dict[str, Shape]:
        """Every Hugging Face tensor and its shape, row by row."""
        shapes: dict[str, Shape] = {}
        for row in self.rows:
            shapes.update(row.their_shapes(self.sizes))
        return shapes


def language_table(
    config: LanguageConfig,
    prefix: str = "",
    *,
    padded_vocab: int | None = None,
    placed_vocab: int | None = None,
) -> Table:
    """Rows of the language model.

    Args:
        config: its shape.
        prefix: what stands in front of Hugging Face names.
        padded_vocab: rows of our vocabulary tables; those of training if None.
        placed_vocab: rows of Hugging Face's; ``config.vocab_size`` if None.

    Raises:
        CheckpointError: the padded vocabulary is smaller than the vocabulary.
    """
    padded = config.padded_vocab() if padded_vocab is None else padded_vocab
    if padded < config.vocab_size:
        raise CheckpointError(
            f"the vocabulary table has {padded} rows, but model.language.vocab_size is "
            f"{config.vocab_size}. Use the model section that the checkpoint was made with."
        )
    sizes = {
        "v": config.vocab_size,
        "padded": padded,
        "placed": config.vocab_size if placed_vocab is None else placed_vocab,
        "h": config.width,
        "f": config.ffn,
        "groups": config.kv_heads,
        "d": config.resolved_head_width(),
        "qd": config.heads * config.resolved_head_width(),
        "kd": config.kv_heads * config.resolved_head_width(),
    }
    rows = LANGUAGES[config.family].rows
    if not config.tied_embeddings:
        rows = (*rows, HEAD)
    return Table(_expand(rows, config.layers, prefix), sizes)


def vision_table(config: VisionConfig, prefix: str = "") -> Table:
    """Rows of the vision tower, without the layers that no feature comes from."""
    sizes = {
        "e": config.width,
        "f": config.ffn,
        "patch": config.patch_size,
        "positions": config.positions(),
        "groups": config.heads,
        "qd": config.width,
        "kd": config.width,
    }
    return Table(_expand(TOWERS[config.family].rows, config.built_layers(), prefix), sizes)


def connector_table(model: ModelConfig, naming: Naming) -> Table:
    """Rows of the connector.

    Raises:
        CheckpointError: the format has no such connector.
    """
    known = naming.connectors.get(model.connector.kind)
    rows = None if known is None else known(model)
    if rows is None:
        raise CheckpointError(
            f"the format {naming.format} cannot hold the connector {model.connector.title()}; it "
            f"knows {', '.join(naming.connectors) or 'none'}"
            f"{'' if known is None else ', with other options'}. hf-vila holds every connector."
        )
    sizes = {"e": model.vision.width, "h": model.language.width}
    return Table(_expand(rows, 0, naming.connector), sizes)


def tables(
    model: ModelConfig,
    naming: Naming,
    *,
    padded_vocab: int | None = None,
    placed_vocab: int | None = None,
) -> tuple[Table, Table, Table]:
    """The tables of a whole model: vision, connector, language."""
    return (
        vision_table(model.vision, naming.vision),
        connector_table(model, naming),
        language_table(
            model.language, naming.language, padded_vocab=padded_vocab, placed_vocab=placed_vocab
        ),
    )


def unread_shapes(config: VisionConfig, prefix: str = "") -> dict[str, Shape]:
    """Tensors of a complete tower that no feature passes through: its last layers and final norm.

    Training leaves them out. A format whose reader builds the complete tower is given them by
    ``ExportSource.write_weights``.
    """
    table = vision_table(config)
    layers = {
        name: shape
        for layer in range(config.built_layers(), config.layers)
        for row in TOWERS[config.family].rows
        if "{i}" in row.ours
        for name, shape in row.at(layer).under(prefix).their_shapes(table.sizes).items()
    }
    norm = {f"{prefix}post_layernorm.{part}": (config.width,) for part in ("weight", "bias")}
    return layers | norm


def _expand(rows: tuple[Row, ...], layers: int, prefix: str) -> tuple[Row, ...]:
    """Repeat the rows that name a layer for each layer."""
    single = [row for row in rows if "{i}" not in row.ours]
    per_layer = [row for row in rows if "{i}" in row.ours]
    expanded = (*single, *(row.at(layer) for layer in range(layers) for row in per_layer))
    return tuple(row.under(prefix) for row in expanded)

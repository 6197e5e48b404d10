"""The one table of names between the training model and Hugging Face, read both ways.

Training names are the parameter names of a whole ``VilaModel`` (no tensor or pipeline
parallelism, global layer numbers). Hugging Face names are those of the exported model:
``language_model.*`` is a LlamaForCausalLM, ``vision_tower.*`` a CLIPVisionModel, ``connector.*``
our own. To support another tower or language model, write its rows here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vila_mc.checkpoint.hf.transforms import (
    MergeGateUp,
    MergeQkv,
    PadVocab,
    Rename,
    Reshape,
    Row,
    Shape,
    Sizes,
)
from vila_mc.config.model import (
    ConnectorConfig,
    ConnectorKind,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from vila_mc.errors import CheckpointError

WORD_EMBEDDINGS = "language.embedding.word_embeddings.weight"

_LAYER = "language.decoder.layers.{i}"
_LLAMA = "language_model.model.layers.{i}"
LANGUAGE: tuple[Row, ...] = (
    PadVocab(WORD_EMBEDDINGS, "language_model.model.embed_tokens.weight"),
    Rename(f"{_LAYER}.input_layernorm.weight", f"{_LLAMA}.input_layernorm.weight", "h"),
    MergeQkv(
        f"{_LAYER}.self_attention.linear_qkv.weight",
        f"{_LLAMA}.self_attn.{{part}}_proj.weight",
        "h",
    ),
    Rename(
        f"{_LAYER}.self_attention.linear_proj.weight", f"{_LLAMA}.self_attn.o_proj.weight", "h qd"
    ),
    Rename(f"{_LAYER}.pre_mlp_layernorm.weight", f"{_LLAMA}.post_attention_layernorm.weight", "h"),
    MergeGateUp(f"{_LAYER}.mlp.linear_fc1.weight", f"{_LLAMA}.mlp.{{part}}_proj.weight"),
    Rename(f"{_LAYER}.mlp.linear_fc2.weight", f"{_LLAMA}.mlp.down_proj.weight", "h f"),
    Rename("language.decoder.final_layernorm.weight", "language_model.model.norm.weight", "h"),
    PadVocab("language.output_layer.weight", "language_model.lm_head.weight"),
)


def _affine(ours: str, theirs: str, weight: str, bias: str) -> tuple[Row, Row]:
    """Rows of a layer with a weight and a bias, given the letters of their shapes."""
    return (
        Rename(f"{ours}.weight", f"{theirs}.weight", weight),
        Rename(f"{ours}.bias", f"{theirs}.bias", bias),
    )


_BLOCK = "vision.decoder.layers.{i}"
_CLIP = "vision_tower.encoder.layers.{i}"
VISION: tuple[Row, ...] = (
    Reshape("vision.class_token", "vision_tower.embeddings.class_embedding", "1 1 e", "e"),
    Rename(
        "vision.conv1.weight",
        "vision_tower.embeddings.patch_embedding.weight",
        "e 3 patch patch",
    ),
    Rename(
        "vision.position_embeddings.weight",
        "vision_tower.embeddings.position_embedding.weight",
        "positions e",
    ),
    # "pre_layrnorm" is how the CLIP of transformers spells it.
    *_affine("vision.ln_pre", "vision_tower.pre_layrnorm", "e", "e"),
    *_affine(f"{_BLOCK}.input_layernorm", f"{_CLIP}.layer_norm1", "e", "e"),
    MergeQkv(
        f"{_BLOCK}.self_attention.linear_qkv.weight", f"{_CLIP}.self_attn.{{part}}_proj.weight", "e"
    ),
    MergeQkv(
        f"{_BLOCK}.self_attention.linear_qkv.bias", f"{_CLIP}.self_attn.{{part}}_proj.bias", ""
    ),
    *_affine(f"{_BLOCK}.self_attention.linear_proj", f"{_CLIP}.self_attn.out_proj", "e e", "e"),
    *_affine(f"{_BLOCK}.pre_mlp_layernorm", f"{_CLIP}.layer_norm2", "e", "e"),
    *_affine(f"{_BLOCK}.mlp.linear_fc1", f"{_CLIP}.mlp.fc1", "f e", "f"),
    *_affine(f"{_BLOCK}.mlp.linear_fc2", f"{_CLIP}.mlp.fc2", "e f", "e"),
)

_NORM = _affine("connector.norm", "connector.norm", "c", "c")
_FC1 = _affine("connector.fc1", "connector.fc1", "h c", "h")
_FC2 = _affine("connector.fc2", "connector.fc2", "h h", "h")
CONNECTOR: Mapping[ConnectorKind, tuple[Row, ...]] = {
    "linear": _FC1,
    "mlp2x_gelu": (*_FC1, *_FC2),
    "downsample_linear": _FC1,
    "mlp_downsample": (*_NORM, *_FC1, *_FC2),
}
"""c is the width of one merged block of patches."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one part of a model, one per parameter, with the sizes of that model."""

    rows: tuple[Row, ...]
    sizes: Sizes

    def our_shapes(self) -> dict[str, Shape]:
        """Every training parameter and its shape."""
        return {row.ours: row.our_shape(self.sizes) for row in self.rows}

    def their_shapes(self) -> dict[str, Shape]:
        """Every Hugging Face tensor and its shape."""
        shapes: dict[str, Shape] = {}
        for row in self.rows:
            shapes.update(row.their_shapes(self.sizes))
        return shapes

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Training tensors -> Hugging Face tensors (views where possible)."""
        result: dict[str, Tensor] = {}
        for row in self.rows:
            result.update(row.split(state[row.ours], self.sizes))
        return result

    def from_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Hugging Face tensors -> training tensors."""
        return {row.ours: row.join(state, self.sizes) for row in self.rows}


def language_table(config: LanguageConfig, padded_vocab_size: int | None = None) -> Table:
    """Rows of the language model.

    Args:
        config: its shape.
        padded_vocab_size: rows of our vocabulary tables; ``config.vocab_size`` if None.

    Raises:
        CheckpointError: the padded vocabulary is smaller than the vocabulary.
    """
    padded = config.vocab_size if padded_vocab_size is None else padded_vocab_size
    if padded < config.vocab_size:
        raise CheckpointError(
            f"the vocabulary table has {padded} rows, but model.language.vocab_size is "
            f"{config.vocab_size}. Use the model section that the checkpoint was made with."
        )
    sizes = {
        "v": config.vocab_size,
        "padded": padded,
        "h": config.width,
        "f": config.ffn,
        "groups": config.kv_heads,
        "qd": config.heads * config.head_width(),
        "kd": config.kv_heads * config.head_width(),
    }
    return Table(_expand(LANGUAGE, config.layers), sizes)


def vision_table(config: VisionConfig) -> Table:
    """Rows of the vision tower, without the last layer, which no feature comes from."""
    sizes = {
        "e": config.width,
        "f": config.ffn,
        "patch": config.patch_size,
        "positions": config.grid() ** 2 + 1,
        "groups": config.heads,
        "qd": config.width,
        "kd": config.width,
    }
    return Table(_expand(VISION, config.built_layers()), sizes)


def connector_table(model: ModelConfig) -> Table:
    """Rows of the connector."""
    connector: ConnectorConfig = model.connector
    sizes = {"c": model.vision.width * connector.factor() ** 2, "h": model.language.width}
    return Table(CONNECTOR[connector.kind], sizes)


def tables(model: ModelConfig, padded_vocab_size: int | None = None) -> tuple[Table, Table, Table]:
    """The tables of a whole model: vision, connector, language."""
    return (
        vision_table(model.vision),
        connector_table(model),
        language_table(model.language, padded_vocab_size),
    )


def _expand(rows: tuple[Row, ...], layers: int) -> tuple[Row, ...]:
    """Repeat the rows that name a layer for each layer."""
    single = [row for row in rows if "{i}" not in row.ours]
    per_layer = [row for row in rows if "{i}" in row.ours]
    return (*single, *(row.at(layer) for layer in range(layers) for row in per_layer))

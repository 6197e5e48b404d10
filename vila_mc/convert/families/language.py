"""Language models as Hugging Face has them: what every family shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vila_mc.config.model import LanguageConfig, RopeConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.transforms import MergeGateUp, MergeQkv, PadVocab, Rename, Row

WORD_EMBEDDINGS = "language.embedding.word_embeddings.weight"
HEAD = PadVocab("language.output_layer.weight", "lm_head.weight")
"""Of language models whose embedding is not their output layer too."""

OURS = "language.decoder.layers.{i}"
THEIRS = "model.layers.{i}"
LLAMA_ROWS: tuple[Row, ...] = (
    PadVocab(WORD_EMBEDDINGS, "model.embed_tokens.weight"),
    Rename(f"{OURS}.input_layernorm.weight", f"{THEIRS}.input_layernorm.weight", "h"),
    MergeQkv(
        f"{OURS}.self_attention.linear_qkv.weight",
        f"{THEIRS}.self_attn.{{part}}_proj.weight",
        "h",
    ),
    Rename(
        f"{OURS}.self_attention.linear_proj.weight", f"{THEIRS}.self_attn.o_proj.weight", "h qd"
    ),
    Rename(f"{OURS}.pre_mlp_layernorm.weight", f"{THEIRS}.post_attention_layernorm.weight", "h"),
    MergeGateUp(f"{OURS}.mlp.linear_fc1.weight", f"{THEIRS}.mlp.{{part}}_proj.weight"),
    Rename(f"{OURS}.mlp.linear_fc2.weight", f"{THEIRS}.mlp.down_proj.weight", "h f"),
    Rename("language.decoder.final_layernorm.weight", "model.norm.weight", "h"),
)
QKV_BIAS = MergeQkv(
    f"{OURS}.self_attention.linear_qkv.bias", f"{THEIRS}.self_attn.{{part}}_proj.bias", ""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HfLanguage:
    """A family of language models as Hugging Face has it: config.json both ways, weight names."""

    name: str
    """Its ``model_type``, and its name in ``config/families.py``."""
    architecture: str
    """The class of transformers that reads it."""
    defaults: Mapping[str, Any]
    """What transformers takes where a config.json says nothing; LLaVA's say little."""
    rows: tuple[Row, ...] = LLAMA_ROWS
    """Of its name table, without those of an output layer of its own."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its own with the only value that is computed here, which is also written."""
    has_window: bool = False
    """Whether ``sliding_window`` counts where it is set."""

    def read(self, config: ConfigValues, *, tied: bool | None = None) -> LanguageConfig:
        """The language model that a config.json describes.

        A sliding window shorter than the longest sequence becomes the longest sequence: within the
        window, attention with and without it is the same.

        Args:
            config: of a model of this family.
            tied: whether embedding and output layer are one, where something above it decides.

        Raises:
            CheckpointError: a key is missing, or asks for what this engine does not compute.
        """
        config = ConfigValues(config.values, config.where, self.defaults)
        for key, allowed in (
            ("hidden_act", ("silu", None)),
            ("attention_bias", (False, None)),
            ("mlp_bias", (False, None)),
            ("use_sliding_window", (False, None)),
            ("quantization_config", (None,)),
        ):
            config.require(key, *allowed)
        heads, width = config.size("num_attention_heads"), config.size("hidden_size")
        head_width = None if config.get("head_dim") is None else config.size("head_dim")
        positions = config.size("max_position_embeddings")
        if self.has_window and config.get("sliding_window") is not None:
            positions = min(positions, config.size("sliding_window"))
        is_tied = bool(config.get("tie_word_embeddings")) if tied is None else tied
        has_groups = bool(config.get("num_key_value_heads"))
        rope = _rope_values(config)
        return LanguageConfig(
            family=self.name,
            layers=config.size("num_hidden_layers"),
            width=width,
            ffn=config.size("intermediate_size"),
            heads=heads,
            kv_heads=config.size("num_key_value_heads") if has_groups else heads,
            head_width=None if head_width == width / heads else head_width,
            vocab_size=config.size("vocab_size"),
            max_positions=positions,
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rope=_rope_from_hf(rope),
            tied_embeddings=is_tied,
            norm_epsilon=config.number("rms_norm_eps"),
        )

    def write(self, language: LanguageConfig, vocab_size: int | None = None) -> dict[str, Any]:
        """config.json of the language model, in the words that transformers 4 and 5 read.

        Args:
            language: its shape.
            vocab_size: rows of the vocabulary tables, where there are more than tokens.
        """
        values = {
            "architectures": [self.architecture],
            "model_type": self.name,
            "vocab_size": language.vocab_size if vocab_size is None else vocab_size,
            "hidden_size": language.width,
            "intermediate_size": language.ffn,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "head_dim": language.resolved_head_width(),
            "hidden_act": "silu",
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.norm_epsilon,
            "rope_parameters": _rope_json(language.rope) | {"rope_theta": language.rope_theta},
            "rope_theta": language.rope_theta,
            "tie_word_embeddings": language.tied_embeddings,
        }
        if language.rope.scaling != "none":
            values["rope_scaling"] = _rope_scaling_json(language.rope)
        return values | dict(self.switches)


def _rope_values(config: ConfigValues) -> ConfigValues:
    """``rope_parameters`` of transformers 5, or ``rope_scaling`` of earlier ones."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    part = config.part(key)
    if "rope_type" not in part.values and "type" in part.values:
        return ConfigValues({**part.values, "rope_type": part.values["type"]}, config.where)
    return part


def _rope_from_hf(rope: ConfigValues) -> RopeConfig:
    rope.require("rope_type", "default", "linear", "llama3", None)
    kind = rope.get("rope_type")
    if kind in ("default", None):
        return RopeConfig()
    if kind == "linear":
        return RopeConfig(scaling="linear", factor=rope.number("factor"))
    return RopeConfig(
        scaling="llama3",
        factor=rope.number("factor"),
        low_frequency_factor=rope.number("low_freq_factor"),
        high_frequency_factor=rope.number("high_freq_factor"),
        original_positions=rope.size("original_max_position_embeddings"),
    )


def _rope_scaling_json(rope: RopeConfig) -> dict[str, Any]:
    """Before 4.43 transformers knew ``linear`` only in two words, and nothing of ``llama3``."""
    if rope.scaling == "linear":
        return {"type": "linear", "factor": rope.factor}
    return _rope_json(rope)


def _rope_json(rope: RopeConfig) -> dict[str, Any]:
    if rope.scaling == "none":
        return {"rope_type": "default"}
    if rope.scaling == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_frequency_factor,
        "high_freq_factor": rope.high_frequency_factor,
        "original_max_position_embeddings": rope.original_positions,
    }

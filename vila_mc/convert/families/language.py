"""Language models as Hugging Face has them: what every family shares."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from vila_mc.config.model import LanguageConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.rope import read_rope, rope_json, rope_scaling_json
from vila_mc.convert.transforms import MergeGateUp, MergeQkv, PadVocab, Rename, Row

WORD_EMBEDDINGS = "language.embedding.word_embeddings.weight"
HEAD = PadVocab("language.output_layer.weight", "lm_head.weight")
"""The output layer, where it is not the embedding itself."""

_MOST_LAYERS = 1000
_HARMLESS = (
    "max_sequence_length",
    "model_max_length",
    "pretraining_tp",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
)
"""Keys that change no output: length of texts, side of padding, how products are cut up."""

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
QK_NORMS: tuple[Row, ...] = tuple(
    Rename(
        f"{OURS}.self_attention.{part}_layernorm.weight",
        f"{THEIRS}.self_attn.{part}_norm.weight",
        "d",
    )
    for part in "qk"
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
    """Rows of its name table, without the output layer's."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its own with the only value that is computed here, which is also written."""
    has_window: bool = False
    """Whether ``sliding_window`` counts where it is set."""
    harmless: Collection[str] = ()
    """Keys of its own that change nothing."""

    def read(self, config: ConfigValues, *, tied: bool | None = None) -> LanguageConfig:
        """The language model that a config.json describes.

        A sliding window shorter than the longest sequence becomes the longest sequence: within the
        window, attention with and without it is the same.

        Args:
            config: of a model of this family.
            tied: whether embedding and output layer are one, where something above it decides.

        Raises:
            CheckpointError: a key is missing, has a value of another type, or asks for what this
                engine does not compute; or there is a key that is not known here.
        """
        config = config.with_defaults(self.defaults)
        self._require_computed(config)
        heads, width = config.size("num_attention_heads"), config.size("hidden_size")
        head_width = config.size("head_dim") if config.get("head_dim") is not None else None
        positions = config.size("max_position_embeddings")
        if self.has_window and config.get("sliding_window") is not None:
            positions = min(positions, config.size("sliding_window"))
        has_groups = config.get("num_key_value_heads") is not None
        theta, rope = read_rope(config)
        is_tied = config.flag("tie_word_embeddings")
        with config.describing():
            language = LanguageConfig(
                family=self.name,
                layers=config.size("num_hidden_layers", _MOST_LAYERS),
                width=width,
                ffn=config.size("intermediate_size"),
                heads=heads,
                kv_heads=config.size("num_key_value_heads") if has_groups else heads,
                head_width=None if head_width == width / heads else head_width,
                vocab_size=config.size("vocab_size"),
                max_positions=positions,
                rope_theta=theta,
                rope=rope,
                tied_embeddings=is_tied if tied is None else tied,
                norm_epsilon=config.number("rms_norm_eps"),
            )
        config.refuse_others(_HARMLESS, self.harmless)
        return language

    def _require_computed(self, config: ConfigValues) -> None:
        for key, allowed in (
            ("hidden_act", ("silu", None)),
            ("attention_bias", (False, None)),
            ("mlp_bias", (False, None)),
            ("use_sliding_window", (False, None)),
            ("use_mrope", (False, None)),
            ("quantization_config", (None,)),
        ):
            config.require(key, *allowed)
        kinds = config.get("layer_types")
        is_full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        if kinds is not None and not is_full:
            raise config.refusal("layer_types", "only full_attention in each is supported.")

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
            "rope_parameters": rope_json(language.rope) | {"rope_theta": language.rope_theta},
            "rope_theta": language.rope_theta,
            "tie_word_embeddings": language.tied_embeddings,
        }
        if language.rope.scaling != "none":
            values["rope_scaling"] = rope_scaling_json(language.rope)
        return values | dict(self.switches)

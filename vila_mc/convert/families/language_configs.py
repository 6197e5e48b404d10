"""The config.json of a language model as a LanguageConfig, and back."""

from collections.abc import Mapping
from typing import Any

from vila_mc.config.model import LanguageConfig, LanguageFamily, RopeConfig
from vila_mc.convert.config_values import ConfigValues

LANGUAGE_CLASSES: Mapping[LanguageFamily, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": dict(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    ),
    "mistral": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=131072,
        rms_norm_eps=1e-6,
        sliding_window=4096,
    ),
    "qwen2": dict(
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=151936,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
    ),
}
"""What transformers takes where a config.json says nothing; LLaVA's say little."""


def language_from_hf(config: ConfigValues, *, tied: bool | None = None) -> LanguageConfig:
    """The language model that a config.json describes.

    A sliding window shorter than the longest sequence (Mistral) becomes the longest sequence:
    within the window, attention with and without it is the same.

    Args:
        config: of a LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM.
        tied: whether embedding and output layer are one, where something above it decides.

    Raises:
        CheckpointError: a key is missing, or asks for what this engine does not compute.
    """
    family = config.get("model_type")
    if family not in _DEFAULTS:
        config.require("model_type", *_DEFAULTS)
    config = ConfigValues(config.values, config.where, _DEFAULTS[family])
    for key, allowed in (
        ("hidden_act", ("silu", None)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("use_sliding_window", (False, None)),
        ("quantization_config", (None,)),
    ):
        config.require(key, *allowed)
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    config.require("head_dim", width // heads, None)
    positions = config.size("max_position_embeddings")
    if family == "mistral" and config.get("sliding_window") is not None:
        positions = min(positions, config.size("sliding_window"))
    is_tied = bool(config.get("tie_word_embeddings")) if tied is None else tied
    rope = _rope_values(config)
    return LanguageConfig(
        family=family,
        layers=config.size("num_hidden_layers"),
        width=width,
        ffn=config.size("intermediate_size"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads") if config.get("num_key_value_heads") else heads,
        vocab_size=config.size("vocab_size"),
        max_positions=positions,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope=_rope_from_hf(rope),
        tied_embeddings=is_tied,
        norm_epsilon=config.number("rms_norm_eps"),
    )


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


def language_json(language: LanguageConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """config.json of the language model, in the words that transformers 4 and 5 read.

    Args:
        language: its shape.
        vocab_size: rows of the vocabulary tables, where there are more than tokens.
    """
    rope = _rope_json(language.rope)
    common = {
        "architectures": [LANGUAGE_CLASSES[language.family]],
        "model_type": language.family,
        "vocab_size": language.vocab_size if vocab_size is None else vocab_size,
        "hidden_size": language.width,
        "intermediate_size": language.ffn,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width(),
        "hidden_act": "silu",
        "max_position_embeddings": language.max_positions,
        "rms_norm_eps": language.norm_epsilon,
        "rope_parameters": rope | {"rope_theta": language.rope_theta},
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": language.tied_embeddings,
    }
    if language.rope.scaling != "none":
        common["rope_scaling"] = _rope_scaling_json(language.rope)
    if language.family == "llama":
        return common | {"attention_bias": False, "mlp_bias": False}
    if language.family == "mistral":
        return common | {"sliding_window": None}
    return common | {"use_sliding_window": False}


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

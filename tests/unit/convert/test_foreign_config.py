"""A foreign config.json is taken exactly as transformers means it, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vila_mc.config.model import LanguageConfig, RopeConfig, VisionConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import LANGUAGES, TOWERS, language_from_hf, vision_from_hf
from vila_mc.errors import CheckpointError

WHERE = Path("model/config.json")
LINEAR = RopeConfig(scaling="linear", factor=4.0)
LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
NEW, OLD = "rope_parameters", "rope_scaling"


def _language(family: Any = "llama", **changes: Any) -> LanguageConfig:
    return language_from_hf(ConfigValues({"model_type": family, **changes}, WHERE))


def _vision(family: Any = "clip_vision_model", **changes: Any) -> VisionConfig:
    return vision_from_hf(ConfigValues({"model_type": family, **changes}, WHERE))


def _refused(read: Callable[..., Any], message: str, **changes: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(**changes)
    text = str(caught.value)
    assert text.startswith(str(WHERE))
    assert "\n" not in text
    assert len(text) < 400
    text.encode()  # can be printed


LANGUAGE_REFUSALS = [
    (
        dict(_attn_implementation="evil/kernels"),
        "_attn_implementation is evil/kernels; only a name",
    ),
    (dict(attn_implementation={"": "evil/kernels"}), "attn_implementation is"),
    (dict(_experts_implementation="evil/kernels@main"), "_experts_implementation is evil/kernels"),
    (dict(family={}), "model_type is {}"),
    (dict(family=["llama"]), "model_type"),
    (dict(family="a\nb\ud800"), r"model_type is a\\nb\\ud800"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; a whole number from 1 to"),
    (dict(num_hidden_layers=2.0), "num_hidden_layers is 2.0"),
    (dict(num_hidden_layers=True), "num_hidden_layers is true"),
    (dict(hidden_size=[4096, 4096]), "hidden_size is"),
    (dict(hidden_size="4096"), "hidden_size is 4096"),
    (dict(hidden_size=0), "hidden_size is 0"),
    (dict(hidden_size=10**400), "hidden_size is 10000000000"),
    (dict(vocab_size=-1), "vocab_size is -1"),
    (dict(num_key_value_heads=[]), r"num_key_value_heads is \[\]"),
    (dict(num_key_value_heads=0), "num_key_value_heads is 0"),
    (dict(num_key_value_heads=5), "describes no model: model.language.heads 32 is not"),
    (dict(head_dim=-2), "head_dim is -2"),
    (dict(rms_norm_eps="1e-5"), "rms_norm_eps is 1e-5; a number"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (dict(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
    (dict(tie_word_embeddings="false"), "tie_word_embeddings is false; true or false is needed"),
    (dict(tie_word_embeddings=1), "tie_word_embeddings is 1"),
    (dict(attention_bias="False"), "attention_bias is False; only false"),
    (dict(attention_bias=0), "attention_bias is 0"),
    (dict(hidden_act=["silu"]), "hidden_act"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
    (dict(layer_types={"0": "full_attention"}), "layer_types"),
    (dict(layer_types=3), "layer_types is 3"),
    (dict(use_mrope=True), "use_mrope is true"),
    (dict(sliding_window=64), r"not known here .*: sliding_window \(64\)"),
    (dict(logits_scaling=8), r"not known here .*: logits_scaling \(8\)"),
    (dict(final_logit_softcapping=30, x={}), r"final_logit_softcapping \(30\), x \({}\)"),
    (dict(auto_map={"AutoModelForCausalLM": "mine.Model"}), "auto_map"),
    (dict(family="qwen2", dual_chunk_attention_config={"chunk_size": 3}), "dual_chunk"),
    (dict(family="qwen2", use_sliding_window=True), "use_sliding_window"),
    (dict(family="qwen3", use_sliding_window=True), "use_sliding_window"),
    (dict(family="qwen3", attention_bias=True), "attention_bias is true"),
    (dict(family="qwen3", layer_types=["full_attention", "sliding_attention"]), "layer_types"),
    (dict(family="mistral", sliding_window=2.5), "sliding_window is 2.5"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
]

ROPE = [  # what a config says, and what it means or how it is refused
    ({}, (10000.0, RopeConfig())),
    ({"rope_theta": 500000}, (500000.0, RopeConfig())),
    ({NEW: {"rope_type": "default", "rope_theta": 5e5}}, (5e5, RopeConfig())),
    ({NEW: {"rope_theta": 5e5}}, (5e5, RopeConfig())),
    ({OLD: {"type": "linear", "factor": 4}}, (10000.0, LINEAR)),
    ({OLD: {"rope_type": "linear", "type": "linear", "factor": 4.0}}, (10000.0, LINEAR)),
    ({NEW: {"type": "linear", "factor": 4.0}, "rope_theta": 1e6}, (1e6, LINEAR)),
    (
        {NEW: {"rope_type": "linear", "factor": 4.0}, OLD: {"type": "linear", "factor": 4.0}},
        (10000.0, LINEAR),
    ),
    ({OLD: {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}, (5e5, LLAMA3)),
    ({OLD: None, NEW: {}}, (10000.0, RopeConfig())),
    ({"partial_rotary_factor": 1.0}, (10000.0, RopeConfig())),
    ({NEW: {"rope_type": "default"}, OLD: {"type": "linear", "factor": 4.0}}, "contradicts"),
    ({NEW: {"type": "linear", "factor": 2.0}, OLD: {"type": "linear", "factor": 4}}, "contradicts"),
    ({NEW: {"rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta is 10000.0; it contradicts"),
    ({NEW: {"rope_theta": 5e5}, OLD: {"rope_theta": 1e4}}, "contradicts"),
    ({OLD: {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is dynamic"),
    ({NEW: {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type is dynamic"),
    ({OLD: {"type": "yarn", "factor": 4.0}}, "type is yarn"),
    ({OLD: {"rope_type": "yarn", "type": "linear", "factor": 4.0}}, "rope_type is yarn"),
    ({OLD: {"rope_type": "linear", "type": "yarn", "factor": 4.0}}, "type is yarn"),
    ({OLD: {"rope_type": "linear", "type": "llama3", **LLAMA3}}, "type is llama3; only linear"),
    ({NEW: {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "longrope"),
    ({OLD: {"type": "su", "short_factor": [1], "long_factor": [1]}}, "type is su"),
    ({OLD: {"type": "mrope", "mrope_section": [16, 24, 24]}}, "type is mrope"),
    ({NEW: {"rope_type": "default", "mrope_section": [16, 24]}}, "rope_parameters.mrope_section"),
    ({NEW: {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
    ({NEW: {"sliding_attention": None, "full_attention": {}}}, "rope_parameters.full_attention"),
    ({NEW: {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
    ({NEW: {"rope_type": "linear", "factor": 4.0, "attention_factor": 0.7}}, "attention_factor"),
    ({NEW: {"rope_type": "default", "factor": 8.0}}, "rope_parameters.factor is 8.0"),
    ({OLD: {"factor": 8.0}}, "rope_scaling.factor is 8.0"),
    ({OLD: {"type": "linear"}}, "rope_scaling.factor is absent"),
    ({OLD: {"type": "linear", "factor": "4"}}, "rope_scaling.factor is 4"),
    ({OLD: {"type": ["linear"], "factor": 4.0}}, "rope_scaling.type"),
    ({OLD: "linear"}, "rope_scaling is linear; a JSON object"),
    ({NEW: [{"rope_type": "default"}]}, "rope_parameters is"),
    ({"rope_theta": "x"}, "rope_theta is x; a number"),
    ({"rope_theta": [10000.0]}, "rope_theta is"),
    ({"rope_theta": 0}, "rope_theta is 0"),
    ({NEW: {"rope_theta": False}}, "rope_parameters.rope_theta is false"),
    ({OLD: {"rope_type": "llama3", **LLAMA3, "factor": None}}, "factor is absent"),
    ({OLD: {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 0.5}}, "high_frequency_factor"),
    ({"original_max_position_embeddings": 4096}, "original_max_position_embeddings"),
    ({"rope_scaling_factor": 2.0}, "rope_scaling_factor"),
]

VISION_REFUSALS = [
    (dict(family={"a": 1}), "model_type"),
    (dict(image_size=[336, 224]), r"image_size is \[336, 224\]"),
    (dict(image_size=[[336], [336]]), "image_size is"),
    (dict(image_size=[336, 336, 336]), "image_size"),
    (dict(image_size=225, patch_size=14), "describes no model: model.vision.image_size 225"),
    (dict(patch_size=float("inf")), "patch_size is inf"),
    (dict(num_hidden_layers=1), "describes no model: model.vision.layers is 1"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers"),
    (dict(layer_norm_eps=1e-12), "layer_norm_eps is 1e-12; only 1e-05"),
    (dict(num_channels=True), "num_channels is true"),
    (dict(use_rope=True), r"use_rope \(true\)"),
    (dict(family="clip", vision_config=[]), "vision_config is"),
    (dict(family="clip", vision_config={"hidden_act": "gelu"}), "vision_config.hidden_act is gelu"),
    (
        dict(
            family="clip", vision_config={"image_size": 336}, vision_config_dict={"image_size": 224}
        ),
        "vision_config_dict.image_size is 224",
    ),
    (dict(family="siglip", vision_config={"window_size": 8}), r"vision_config.window_size \(8\)"),
]


@pytest.mark.parametrize(("changes", "message"), LANGUAGE_REFUSALS, ids=str)
def test_language(changes: dict[str, Any], message: str) -> None:
    _refused(_language, message, **changes)


@pytest.mark.parametrize(("changes", "message"), VISION_REFUSALS, ids=str)
def test_vision(changes: dict[str, Any], message: str) -> None:
    _refused(_vision, message, **changes)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("said", "meant"), ROPE, ids=str)
def test_rope(said: dict[str, Any], meant: Any, family: str) -> None:
    if isinstance(meant, str):
        _refused(_language, meant, family=family, **said)
        return
    theta, rope = meant
    if isinstance(rope, dict):
        rope = RopeConfig(
            scaling="llama3",
            factor=8.0,
            low_frequency_factor=1.0,
            high_frequency_factor=4.0,
            original_positions=32,
        )
    language = _language(family, **said)
    assert (language.rope_theta, language.rope) == (theta, rope)


@pytest.mark.parametrize("rope", [RopeConfig(), LINEAR, RopeConfig(scaling="llama3", factor=8.0)])
def test_what_is_written_is_read_back(rope: RopeConfig) -> None:
    for family in LANGUAGES.values():
        language = _language(family.name, head_dim=64, rope_theta=5e5)
        object.__setattr__(language, "rope", rope)
        assert language_from_hf(ConfigValues(family.write(language), WHERE)) == language
    for tower in TOWERS.values():
        vision = _vision(tower.tower_type())
        written = tower.write(vision, vision.layers)
        assert vision_from_hf(ConfigValues(written, WHERE)) == vision


def test_transformers_own_configs_hold_nothing_unknown() -> None:
    """In its own words, every default written out."""
    transformers = pytest.importorskip("transformers")
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        values = getattr(transformers, f"{name}Config")().to_dict()
        values["sliding_window"] = values.get("sliding_window")
        assert language_from_hf(ConfigValues(values, WHERE)).family == name.lower()
    for name in ("CLIP", "Siglip"):
        for kind in (f"{name}Config", f"{name}VisionConfig"):
            values = getattr(transformers, kind)().to_dict()
            assert vision_from_hf(ConfigValues(values, WHERE)).family == name.lower()


def test_a_published_config_of_each_age() -> None:
    """Keys as they stand in files that thousands use."""
    generation = dict(do_sample=False, top_k=50, temperature=1.0, num_beams=1, pruned_heads={})
    vicuna = dict(_name_or_path="x", max_sequence_length=2048, pretraining_tp=1, torch_dtype="half")
    assert _language(**vicuna, **generation, use_cache=True, rope_scaling=None).heads == 32
    distilled = dict(use_mrope=False, max_window_layers=21, sliding_window=131072)
    assert _language("qwen2", **distilled).rope == RopeConfig()
    qwen3 = dict(hidden_size=1024, num_attention_heads=16, num_key_value_heads=8)
    assert (
        _language("qwen3", **qwen3, use_sliding_window=False, max_window_layers=28).head_width
        == 128
    )
    assert _language("qwen3", **qwen3, head_dim=64).head_width is None
    clip = dict(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14)
    whole = dict(vision_config={**clip, **generation}, vision_config_dict=clip, projection_dim=768)
    assert _vision("clip", **whole, logit_scale_init_value=2.6, text_config={}).image_size == 336

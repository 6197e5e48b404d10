"""config.json and its kin: a ModelConfig as Hugging Face writes it, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vila_mc.config.model import (
    CLIP_MEAN,
    CLIP_STD,
    ConnectorConfig,
    ImageMode,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from vila_mc.errors import CheckpointError

MODEL_TYPE = "vila_mc"
"""``model_type`` of our exports."""
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_BICUBIC = 3
_CLIP_EPSILON = 1e-5


def model_json(
    model: ModelConfig, dtype: torch.dtype, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """config.json of an exported model.

    Args:
        model: its shape.
        dtype: number format of the weights.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``.
    """
    configuration, modeling = (
        "configuration_vila.VilaConfig",
        "modeling_vila.VilaForConditionalGeneration",
    )
    return {
        "architectures": ["VilaForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": configuration,
            "AutoModelForCausalLM": modeling,
            "AutoModelForImageTextToText": modeling,
        },
        "model_type": MODEL_TYPE,
        "dtype": DTYPE_NAMES[dtype],
        "connector_kind": model.connector.kind,
        "image_token_id": model.language.vocab_size,
        "tie_word_embeddings": False,
        **token_ids,
        "text_config": _llama_json(model.language) | dict(token_ids),
        "vision_config": _clip_json(model.vision),
    }


def _llama_json(language: LanguageConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": language.vocab_size,
        "hidden_size": language.width,
        "intermediate_size": language.ffn,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width(),
        "hidden_act": "silu",
        "max_position_embeddings": language.max_positions,
        "rms_norm_eps": language.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def _clip_json(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": vision.ffn,
        "num_hidden_layers": vision.built_layers(),
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": _CLIP_EPSILON,
    }


def preprocessor_json(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json: CLIP's keys, plus ``image_mode`` and our image processor."""
    square = {"height": vision.image_size, "width": vision.image_size}
    is_crop = vision.image_mode == "crop"
    return {
        "image_processor_type": "VilaImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_vila.VilaImageProcessor"},
        "processor_class": "VilaProcessor",
        "image_mode": vision.image_mode,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": vision.image_size} if is_crop else square,
        "resample": _BICUBIC,
        "do_center_crop": is_crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def processor_json(model: ModelConfig) -> dict[str, Any]:
    """processor_config.json."""
    return {
        "processor_class": "VilaProcessor",
        "auto_map": {"AutoProcessor": "processing_vila.VilaProcessor"},
        "image_seq_length": model.visual_tokens(),
        "image_token_id": model.language.vocab_size,
    }


def language_from_hf(config: Mapping[str, Any], where: Path) -> LanguageConfig:
    """The language model that a Llama's config.json describes.

    Args:
        config: its content.
        where: the file, for messages.

    Raises:
        CheckpointError: a key is missing, or asks for what this engine does not compute.
    """
    _require(config, where, "model_type", ("llama",))
    for key, allowed in (
        ("hidden_act", ("silu", None)),
        ("tie_word_embeddings", (False, None)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("rope_scaling", (None,)),
        ("quantization_config", (None,)),
    ):
        _require(config, where, key, allowed)
    rope = config.get("rope_parameters") or {}
    _require(rope, where, "rope_type", ("default", None))
    heads, width = _size(config, where, "num_attention_heads"), _size(config, where, "hidden_size")
    _require(config, where, "head_dim", (width // heads, None))
    return LanguageConfig(
        layers=_size(config, where, "num_hidden_layers"),
        width=width,
        ffn=_size(config, where, "intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        vocab_size=_size(config, where, "vocab_size"),
        max_positions=int(config.get("max_position_embeddings") or 2048),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=float(config.get("rms_norm_eps") or 1e-6),
    )


def vision_from_hf(config: Mapping[str, Any], where: Path, image_mode: ImageMode) -> VisionConfig:
    """The vision tower that a CLIP's config.json describes.

    Args:
        config: the content of a ``clip`` or ``clip_vision_model`` config.
        where: the file, for messages.
        image_mode: how images become square; CLIP's config does not say.

    Raises:
        CheckpointError: a key is missing, or asks for what this engine does not compute.
    """
    if config.get("model_type") == "clip":
        # CLIP's config.json leaves out what equals the defaults of its parts.
        config = config.get("vision_config") or {}
    else:
        _require(config, where, "model_type", ("clip_vision_model",))
    for key, allowed in (
        ("hidden_act", ("quick_gelu", None)),
        ("layer_norm_eps", (_CLIP_EPSILON, None)),
        ("num_channels", (3, None)),
        ("quantization_config", (None,)),
    ):
        _require(config, where, key, allowed)
    return VisionConfig(
        image_size=_size(config, where, "image_size"),
        patch_size=_size(config, where, "patch_size"),
        width=_size(config, where, "hidden_size"),
        layers=_size(config, where, "num_hidden_layers"),
        heads=_size(config, where, "num_attention_heads"),
        ffn=_size(config, where, "intermediate_size"),
        image_mode=image_mode,
    )


def model_from_export(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: Path
) -> ModelConfig:
    """The model that one of our exports holds: the inverse of ``model_json``.

    Raises:
        CheckpointError: the config is not one of ours.
    """
    _require(config, where, "model_type", (MODEL_TYPE,))
    vision = dict(config["vision_config"])
    vision["num_hidden_layers"] += 1  # the export leaves out the layer nobody reads
    return ModelConfig(
        vision=vision_from_hf(vision, where, preprocessor["image_mode"]),
        connector=ConnectorConfig(kind=config["connector_kind"]),
        language=language_from_hf(config["text_config"], where),
    )


def _require(config: Mapping[str, Any], where: Path, key: str, allowed: tuple[object, ...]) -> None:
    given = config.get(key)
    if given not in allowed:
        choices = " or ".join(str(value) for value in allowed if value is not None) or "absent"
        raise CheckpointError(
            f"{where}: {key} is {given}; only {choices} is supported. Choose another checkpoint."
        )


def _size(config: Mapping[str, Any], where: Path, key: str) -> int:
    value = config.get(key)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(
            f"{where}: {key} is {value}; a positive whole number is needed. Restore the original "
            "config.json."
        )
    return value

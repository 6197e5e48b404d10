"""The config.json and preprocessor of a vision tower as a VisionConfig, and back."""

from collections.abc import Mapping
from typing import Any

from vila_mc.config.model import ImageMode, VisionConfig, VisionFamily
from vila_mc.convert.config_values import ConfigValues

_BICUBIC = 3
_TYPES: Mapping[str, VisionFamily] = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}
_ACTIVATIONS: Mapping[VisionFamily, str] = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
_DEFAULTS: Mapping[VisionFamily, dict[str, Any]] = {
    "clip": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        layer_norm_eps=1e-5,
    ),
    "siglip": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
        layer_norm_eps=1e-6,
    ),
}
"""What transformers takes where a config.json says nothing."""


def vision_from_hf(config: ConfigValues, image_mode: ImageMode | None = None) -> VisionConfig:
    """The vision tower that a config.json describes.

    Args:
        config: of a CLIPModel, SiglipModel, or the vision model of either.
        image_mode: how images become square, which these configs do not say; if None, as the
            tower's makers do: CLIP crops, SigLIP resizes.

    Raises:
        CheckpointError: a key is missing, or asks for what this engine does not compute.
    """
    kind = config.get("model_type")
    if kind in ("clip", "siglip"):
        config = config.part("vision_config")
        kind = f"{kind}_vision_model"
    elif kind not in _TYPES:
        config.require("model_type", *_TYPES, "clip", "siglip")
    family = _TYPES[kind]
    config = ConfigValues(config.values, config.where, _DEFAULTS[family])
    for key, allowed in (
        ("hidden_act", (_ACTIVATIONS[family], None)),
        ("layer_norm_eps", (_DEFAULTS[family]["layer_norm_eps"],)),
        ("num_channels", (3, None)),
        ("quantization_config", (None,)),
    ):
        config.require(key, *allowed)
    return VisionConfig(
        family=family,
        image_size=config.size("image_size"),
        patch_size=config.size("patch_size"),
        width=config.size("hidden_size"),
        layers=config.size("num_hidden_layers"),
        heads=config.size("num_attention_heads"),
        ffn=config.size("intermediate_size"),
        image_mode=image_mode or ("crop" if family == "clip" else "resize"),
    )


def vision_json(vision: VisionConfig, layers: int) -> dict[str, Any]:
    """config.json of the tower.

    Args:
        vision: its shape.
        layers: how many layers the files hold.
    """
    name = "CLIPVisionModel" if vision.family == "clip" else "SiglipVisionModel"
    return {
        "architectures": [name],
        "model_type": f"{vision.family}_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": vision.ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": _ACTIVATIONS[vision.family],
        "layer_norm_eps": vision.norm_epsilon(),
    } | ({"vision_use_head": False} if vision.family == "siglip" else {})


def preprocessor_json(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json in CLIP's words; whoever writes it adds the class that reads it."""
    square = {"height": vision.image_size, "width": vision.image_size}
    is_crop = vision.image_mode == "crop"
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": vision.image_size} if is_crop else square,
        "resample": _BICUBIC,
        "do_center_crop": is_crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.channel_mean()),
        "image_std": list(vision.channel_std()),
    }


def image_mode_of(preprocessor: ConfigValues) -> ImageMode:
    """How a CLIP or LLaVA preprocessor makes images square."""
    if preprocessor.get("do_pad"):
        return "pad"
    return "crop" if preprocessor.get("do_center_crop") else "resize"

"""The configs of whole models in each format that is written."""

from collections.abc import Mapping
from typing import Any

import torch

from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig, VisionConfig
from vila_mc.convert.families.registry import TOWERS, language_json, vision_json
from vila_mc.convert.families.vision import preprocessor_json

MODEL_TYPE = "vila_mc"
"""``model_type`` of our own modelling file."""
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

TokenIds = Mapping[str, int | None]
"""``bos_token_id``, ``eos_token_id``, ``pad_token_id``."""


def remote_code_json(model: ModelConfig, dtype: torch.dtype, token_ids: TokenIds) -> dict[str, Any]:
    """config.json of a model that loads with our own modelling file.

    Args:
        model: its shape.
        dtype: number format of the weights.
        token_ids: ids of special tokens.
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
        "class_tokens": model.vision.facts().class_tokens,
        "connector_kind": model.connector.kind,
        "image_token_id": model.language.vocab_size,
        "tie_word_embeddings": model.language.tied_embeddings,
        **token_ids,
        "text_config": language_json(model.language) | dict(token_ids),
        "vision_config": vision_json(model.vision, model.vision.built_layers()),
    }


def remote_processor_json(model: ModelConfig) -> dict[str, Any]:
    """processor_config.json beside our own modelling file."""
    return {
        "processor_class": "VilaProcessor",
        "auto_map": {"AutoProcessor": "processing_vila.VilaProcessor"},
        "image_seq_length": model.visual_tokens(),
        "image_token_id": model.language.vocab_size,
    }


def remote_preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json beside our own modelling file."""
    return {
        "image_processor_type": "VilaImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_vila.VilaImageProcessor"},
        "processor_class": "VilaProcessor",
        "image_mode": model.vision.image_mode,
        **preprocessor_json(model.vision),
    }


def llava_json(
    model: ModelConfig, dtype: torch.dtype, token_ids: TokenIds, image_token: int, rows: int
) -> dict[str, Any]:
    """config.json of a LlavaForConditionalGeneration.

    Args:
        model: its shape.
        dtype: number format of the weights.
        token_ids: ids of special tokens.
        image_token: id of the image placeholder.
        rows: rows of the vocabulary tables.
    """
    is_linear = model.connector.kind == "linear"
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": DTYPE_NAMES[dtype],
        "image_token_index": image_token,
        "image_seq_length": model.visual_tokens(),
        "projector_hidden_act": "linear" if is_linear else "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": _selection(model),
        "tie_word_embeddings": model.language.tied_embeddings,
        **token_ids,
        "text_config": language_json(model.language, rows) | dict(token_ids),
        "vision_config": vision_json(model.vision, model.vision.layers),
    }


def llava_processor_json(model: ModelConfig) -> dict[str, Any]:
    """processor_config.json of a LlavaProcessor."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": model.vision.patch_size,
        "num_additional_image_tokens": model.vision.facts().class_tokens,
        "vision_feature_select_strategy": _selection(model),
    }


def llava_preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json of transformers' own image processors."""
    is_pad = model.vision.image_mode == "pad"
    return {
        "image_processor_type": "LlavaImageProcessor" if is_pad else "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        **({"do_pad": True} if is_pad else {}),
        **preprocessor_json(model.vision),
    }


def _selection(model: ModelConfig) -> str:
    """LLaVA's name for dropping the class token, or for keeping everything."""
    return "default" if model.vision.facts().class_tokens else "full"


def official_json(model: ModelConfig, dtype: torch.dtype, token_ids: TokenIds) -> dict[str, Any]:
    """The top config.json of a directory of the public VILA code."""
    return {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        # Its loader goes on only where this is set; it looks for the parts beside the file.
        "resume_path": "./",
        "hidden_size": model.language.width,
        "mm_hidden_size": model.vision.width,
        "image_aspect_ratio": _ASPECTS[model.vision.image_mode],
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": official_selection(model.vision),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        # Without this the newer loader puts a newline after every image.
        "image_encoder": {
            "_target_": "llava.model.encoders.BasicImageEncoder",
            "end_tokens": None,
        },
        "model_dtype": f"torch.{DTYPE_NAMES[dtype]}",
        "llm_cfg": official_language_json(model, dtype, token_ids),
        "vision_tower_cfg": official_vision_json(model, dtype),
        "mm_projector_cfg": official_projector_json(model, dtype),
    }


def official_selection(vision: VisionConfig) -> str:
    """The public code's name for every patch: it drops the first token of a tower, or keeps it."""
    return "patch" if vision.facts().class_tokens else "cls_patch"


_ASPECTS: Mapping[ImageMode, str] = {"crop": "square", "pad": "pad", "resize": "resize"}


def official_language_json(
    model: ModelConfig, dtype: torch.dtype, token_ids: TokenIds
) -> dict[str, Any]:
    """llm/config.json; also of a language model exported alone."""
    return language_json(model.language) | {"dtype": DTYPE_NAMES[dtype], **token_ids}


def official_vision_json(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """vision_tower/config.json."""
    return vision_json(model.vision, model.vision.layers) | {"dtype": DTYPE_NAMES[dtype]}


def official_projector_json(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """mm_projector/config.json."""
    return {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": model.connector.kind,
        "dtype": DTYPE_NAMES[dtype],
    }


def official_preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    """vision_tower/preprocessor_config.json."""
    kind = TOWERS[model.vision.family].image_processor
    return {"image_processor_type": kind, **preprocessor_json(model.vision)}

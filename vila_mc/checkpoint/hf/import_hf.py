"""Start from published weights: a Llama, a CLIP tower, or one of our own exports."""

from pathlib import Path

from torch import Tensor

from vila_mc.checkpoint.hf.configs import language_from_hf, model_from_export, vision_from_hf
from vila_mc.checkpoint.hf.convert import check_tensors, from_hf
from vila_mc.checkpoint.hf.names import Table, language_table, vision_table
from vila_mc.checkpoint.hf.weights import read_json, read_weights
from vila_mc.config.model import ImageMode, LanguageConfig, ModelConfig, VisionConfig

_COMPUTED = (".rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of names of tensors that old checkpoints hold although they follow from the config."""
_BESIDE_THE_TOWER = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "post_layernorm.",
)
"""Beginnings of names of a CLIP that no patch feature passes through."""


def read_hf_llama(
    directory: Path, padded_vocab_size: int | None = None
) -> tuple[LanguageConfig, dict[str, Tensor]]:
    """A Llama, as the ``language.*`` part of a training state dict.

    Args:
        directory: of a LlamaForCausalLM: config.json and safetensors.
        padded_vocab_size: rows of the vocabulary tables; the vocabulary's own size if None.

    Raises:
        CheckpointError: something is missing, damaged, or not supported; pickled weights are.
    """
    where = directory / "config.json"
    config = language_from_hf(read_json(where), where)
    return config, _convert(
        {f"language_model.{name}": tensor for name, tensor in _read(directory).items()},
        language_table(config, padded_vocab_size),
        directory,
    )


def read_hf_clip(
    directory: Path, image_mode: ImageMode = "crop"
) -> tuple[VisionConfig, dict[str, Tensor]]:
    """A CLIP vision tower, as the ``vision.*`` part of a training state dict.

    Its last layer, final norm and projection are left out, and so is CLIP's text side: features
    come from the output of the last layer but one.

    Args:
        directory: of a CLIPModel or CLIPVisionModel: config.json and safetensors.
        image_mode: how images become square; CLIP itself crops.

    Raises:
        CheckpointError: something is missing, damaged, or not supported; pickled weights are.
    """
    where = directory / "config.json"
    config = vision_from_hf(read_json(where), where, image_mode)
    unused = (*_BESIDE_THE_TOWER, f"encoder.layers.{config.built_layers()}.")
    tower = {
        name.removeprefix("vision_model."): tensor for name, tensor in _read(directory).items()
    }
    kept = {
        f"vision_tower.{name}": tensor
        for name, tensor in tower.items()
        if not name.startswith(unused)
    }
    return config, _convert(kept, vision_table(config), directory)


def read_export(
    directory: Path, padded_vocab_size: int | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A whole model that ``export_hf`` wrote, as a training state dict.

    Raises:
        CheckpointError: something is missing or damaged, or the directory is not our export.
    """
    where = directory / "config.json"
    preprocessor = read_json(directory / "preprocessor_config.json")
    model = model_from_export(read_json(where), preprocessor, where)
    return model, from_hf(read_weights(directory), model, padded_vocab_size)


def _read(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in read_weights(directory).items()
        if not name.endswith(_COMPUTED)
    }


def _convert(state: dict[str, Tensor], table: Table, directory: Path) -> dict[str, Tensor]:
    check_tensors(state, table.their_shapes(), str(directory))
    return table.from_hf(state)

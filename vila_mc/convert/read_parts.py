"""The parts of published models as training tensors: a language model, a vision tower, a connector.

Nothing is read until it is needed. Names are those within a part: without ``language_model.``,
``vision_model.`` and the like.
"""

from dataclasses import replace
from pathlib import Path

import torch

from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors
from vila_mc.checkpoint.positions import POSITIONS, interpolation_line
from vila_mc.config.families import ImageMode
from vila_mc.config.model import LanguageConfig, VisionConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.pixels import read_pixels
from vila_mc.convert.families.registry import language_from_hf, vision_from_hf
from vila_mc.convert.families.vision import DEFAULT_LAYER
from vila_mc.convert.names import language_table, vision_table
from vila_mc.convert.rename_tensors import from_hf
from vila_mc.convert.weights import open_weights, read_json
from vila_mc.errors import say
from vila_mc.model.positions import interpolate_positions

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPUTED = (".rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of names of tensors that old checkpoints hold although they follow from the config."""
_BESIDE_THE_TOWER = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "post_layernorm.",
    "head.",
)
"""Beginnings of names of a CLIP or SigLIP that no patch feature passes through."""


def read_language(
    directory: Path, *, trust_pickle: bool = False
) -> tuple[LanguageConfig, dict[str, LazyTensor]]:
    """A language model alone, as the ``language.*`` part of a training state.

    Args:
        directory: of a Llama, Mistral, Qwen2 or Qwen3 for causal language modelling.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported.
    """
    where = directory / "config.json"
    config = language_from_hf(ConfigValues(read_json(where), where))
    tensors = open_weights(directory, trust_pickle=trust_pickle)
    config = settle_head(tensors, config, str(directory))
    return config, join_language(tensors, config, str(directory))


def read_vision(
    directory: Path,
    image_mode: ImageMode | None = None,
    *,
    select_layer: int = DEFAULT_LAYER,
    trust_pickle: bool = False,
) -> tuple[VisionConfig, dict[str, LazyTensor]]:
    """A vision tower, as the ``vision.*`` part of a training state.

    Layers above the one that features come from are left out, and so are its final norm, its heads
    and the text side.

    Args:
        directory: of a CLIP or SigLIP, whole or its vision model.
        image_mode: how images become square; as the image processor in it does if None.
        select_layer: the layer that features come from, counted from the end.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported.
    """
    where = directory / "config.json"
    config = vision_from_hf(ConfigValues(read_json(where), where), select_layer)
    config = read_pixels(directory, config, image_mode)
    tensors = open_weights(directory, trust_pickle=trust_pickle)
    return config, join_vision(tensors, config, str(directory))


def at_image_size(
    theirs: VisionConfig, tower: dict[str, LazyTensor], image_size: int
) -> tuple[VisionConfig, dict[str, LazyTensor]]:
    """A tower for images of another size: position embeddings are interpolated, and it is said.

    Args:
        theirs: as ``read_vision`` read it.
        tower: its training tensors.
        image_size: side of the images, in pixels.

    Raises:
        ConfigError: the tower cannot see images of that size.
    """
    ours = replace(theirs, image_size=image_size)
    if ours.grid() == theirs.grid():
        return ours, tower
    say(interpolation_line(theirs, ours))
    table = tower[POSITIONS]
    stretched = LazyTensor(
        (ours.positions(), ours.width),
        table.dtype,
        lambda: interpolate_positions(table.read(), ours.facts().class_tokens, ours.grid()),
    )
    return ours, tower | {POSITIONS: stretched}


def settle_head(tensors: LazyTensors, config: LanguageConfig, where: str) -> LanguageConfig:
    """The config, with an output layer of its own where the files hold another than the embedding.

    transformers 5 keeps both then, and so does this; it is said in one line. An adapter that
    trained the two apart leaves such files.

    Args:
        tensors: named as in a ...ForCausalLM.
        config: as the files' config.json has it.
        where: what to call them in the line.
    """
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if not config.tied_embeddings or head is None or embedding is None:
        return config
    if head.shape == embedding.shape and torch.equal(head.read(), embedding.read()):
        return config
    say(
        f"{where}: tie_word_embeddings is true, but {_HEAD} is not {_EMBEDDING}. Both are kept.",
    )
    return replace(config, tied_embeddings=False)


def join_language(
    tensors: LazyTensors, config: LanguageConfig, where: str, placed_vocab: int | None = None
) -> dict[str, LazyTensor]:
    """Tensors named as in a ...ForCausalLM -> training tensors.

    Args:
        tensors: names and tensors.
        config: the shape of the model.
        where: what to call it in messages.
        placed_vocab: rows of its vocabulary tables, where there are more than tokens.

    Raises:
        CheckpointError: names or shapes are not those of the model.
    """
    kept = {name: t for name, t in tensors.items() if not name.endswith(_COMPUTED)}
    if config.tied_embeddings:
        kept.pop(_HEAD, None)  # older files hold the embedding twice
    return from_hf(kept, [language_table(config, placed_vocab=placed_vocab)], where)


def join_vision(tensors: LazyTensors, config: VisionConfig, where: str) -> dict[str, LazyTensor]:
    """Tensors named as in a CLIP or SigLIP -> training tensors. Raises CheckpointError."""
    above = range(config.built_layers(), config.layers)
    unused = (*_BESIDE_THE_TOWER, *(f"encoder.layers.{layer}." for layer in above))
    named = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    kept = {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith(unused) and not name.endswith(_COMPUTED)
    }
    return from_hf(kept, [vision_table(config)], where)


def within(tensors: LazyTensors, prefix: str) -> dict[str, LazyTensor]:
    """The tensors under ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }

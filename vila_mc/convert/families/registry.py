"""The families that can be read from Hugging Face and written for it: one line each."""

from typing import Any

from vila_mc.config.model import LanguageConfig, VisionConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.clip import CLIP
from vila_mc.convert.families.language import HfLanguage
from vila_mc.convert.families.llama import LLAMA
from vila_mc.convert.families.mistral import MISTRAL
from vila_mc.convert.families.qwen2 import QWEN2
from vila_mc.convert.families.qwen3 import QWEN3
from vila_mc.convert.families.siglip import SIGLIP
from vila_mc.convert.families.vision import DEFAULT_LAYER, MOST_LAYERS, HfVision

LANGUAGES: dict[str, HfLanguage] = {each.name: each for each in (LLAMA, MISTRAL, QWEN2, QWEN3)}
TOWERS: dict[str, HfVision] = {each.name: each for each in (CLIP, SIGLIP)}


def language_from_hf(config: ConfigValues, *, tied: bool | None = None) -> LanguageConfig:
    """The language model that a config.json describes, as ``HfLanguage.read`` gives it.

    Raises:
        CheckpointError: it is of no family that is known, or has what is not computed here.
    """
    config.require("model_type", *LANGUAGES)
    return LANGUAGES[config.get("model_type")].read(config, tied=tied)


def language_json(language: LanguageConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """config.json of a language model, as ``HfLanguage.write`` gives it."""
    return LANGUAGES[language.family].write(language, vocab_size)


def vision_from_hf(
    config: ConfigValues, select_layer: int = DEFAULT_LAYER, *, is_cut: bool = False
) -> VisionConfig:
    """The tower that a config.json describes, as ``HfVision.read`` gives it.

    Raises:
        CheckpointError: it is of no family that is known, or has what is not computed here.
    """
    towers = towers_by_type()
    config.require("model_type", *towers)
    return towers[config.get("model_type")].read(config, select_layer, is_cut=is_cut)


def vision_json(vision: VisionConfig, layers: int) -> dict[str, Any]:
    """config.json of a tower, as ``HfVision.write`` gives it."""
    return TOWERS[vision.family].write(vision, layers)


def selected_layer(config: ConfigValues, key: str) -> int:
    """The layer that a config takes features from, counted from the end; the last but one where it
    says none. Raises CheckpointError."""
    if config.get(key) is None:
        return DEFAULT_LAYER
    return config.from_the_end(key, MOST_LAYERS)


def towers_by_type() -> dict[str, HfVision]:
    """Families of towers by every ``model_type`` that has one."""
    return {kind: each for each in TOWERS.values() for kind in (each.tower_type(), each.name)}

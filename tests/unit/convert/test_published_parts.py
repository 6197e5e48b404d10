"""Presets of published parts against the classes of transformers that read these parts."""

from pathlib import Path

import pytest
import torch
import transformers

from vila_mc.config.load import load_model
from vila_mc.config.published import published_parts
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import (
    LANGUAGES,
    TOWERS,
    language_from_hf,
    language_json,
    vision_from_hf,
    vision_json,
)

PARTS = published_parts()
WHERE = Path("config.json")
BUILT = [name for name, part in PARTS.items() if part.weights < 2e9]
"""Of each family; larger ones only repeat layers."""


@pytest.mark.parametrize("name", PARTS)
def test_a_preset_is_what_an_import_would_make_of_its_config_json(name: str) -> None:
    model = load_model([Path(f"preset:{name}")])
    language, vision = model.language, model.vision
    assert language_from_hf(ConfigValues(language_json(language), WHERE)) == language
    assert vision_from_hf(ConfigValues(vision_json(vision, vision.layers), WHERE)) == vision


@pytest.mark.parametrize("name", [*BUILT, "mistral-7b-v0.3"])
def test_transformers_builds_as_many_weights(name: str) -> None:
    model = load_model([Path(f"preset:{name}")])
    if PARTS[name].part == "vision":
        values = vision_json(model.vision, model.vision.layers)
        architecture = TOWERS[model.vision.family].architecture
    else:
        values = language_json(model.language)
        architecture = LANGUAGES[model.language.family].architecture
    built = getattr(transformers, architecture)
    with torch.device("meta"):
        module = built(built.config_class.from_dict(values))
    assert module.num_parameters() == PARTS[name].weights

"""Published vision towers and language models as presets: one section of ``model`` each.

Their tables are ``presets/vision.yaml`` and ``presets/language.yaml``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from vila_mc.config.model import LanguageConfig, VisionConfig

Part = Literal["vision", "language"]

PRESET_FOLDER = Path(str(files("vila_mc.config"))) / "presets"
_DEFAULTS: Mapping[Part, VisionConfig | LanguageConfig] = {
    "vision": VisionConfig(),
    "language": LanguageConfig(),
}


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """A vision tower or a language model, as its publishers' config.json describes it."""

    part: Part
    """The section of ``model`` that it fills."""
    published: str
    """The model on Hugging Face's hub that it was read off."""
    weights: int
    """Of all of it, a tied embedding counted once; of a tower without SigLIP's pooling head."""
    shape: Mapping[str, Any]
    """Options of the section that tell it from others."""

    def section(self) -> dict[str, Any]:
        """Every option of the section, so that none of an earlier recipe's is left in it."""
        return dataclasses.asdict(_DEFAULTS[self.part]) | dict(self.shape)


@cache
def published_parts() -> dict[str, PublishedPart]:
    """Every published part by the name of its preset, towers first."""
    return {
        name: PublishedPart(part, **values)
        for part in _DEFAULTS
        for name, values in yaml.safe_load((PRESET_FOLDER / f"{part}.yaml").read_text()).items()
    }

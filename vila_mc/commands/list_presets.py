"""What ``--config preset:NAME`` knows, for people."""

import math
from collections.abc import Iterator
from pathlib import Path

from vila_mc.config.load import load_model
from vila_mc.config.published import published_parts
from vila_mc.config.recipe import PRESETS, WHOLE_MODELS
from vila_mc.topology.shapes import model_parameters


def preset_lines() -> Iterator[str]:
    """A line about each preset: its name, its weights, and what it is."""
    for names, what in (
        (PRESETS, "a recipe for a model that starts from nothing"),
        (WHOLE_MODELS, "a whole model of published parts"),
    ):
        for name in names:
            model = load_model([Path(f"preset:{name}")])
            weights = sum(math.prod(each.shape) for each in model_parameters(model))
            yield _line(name, weights, what)
    for name, part in published_parts().items():
        kind = "vision tower" if part.part == "vision" else "language model"
        yield _line(name, part.weights, f"{kind}, {part.published}")


def _line(name: str, weights: int, what: str) -> str:
    return f"preset:{name:<20}{weights:>15,} weights  {what}"

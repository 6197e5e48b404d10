"""A recipe in a layout that a person wrote as ``tensor=2,pipeline=4``."""

from dataclasses import replace
from typing import Any

from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError

_NUMBERS = ("tensor", "pipeline", "virtual", "micro_batch")
_WORDS = {"recompute": ("none", "full"), "vision_placement": ("shared", "dedicated")}
_LAYERS = "layers_per_stage"


def with_layout(config: RunConfig, text: str) -> RunConfig:
    """The recipe in the layout; what the text leaves out is 1, or as the recipe has it; a
    micro-batch that neither has is the one that training chooses.

    Raises:
        ConfigError: the text is none of a layout, or the recipe cannot be split like this.
    """
    given = _pairs(text)
    parallel = {name: given.get(name, 1) for name in ("tensor", "pipeline", "virtual")}
    placement = given.get("vision_placement", "shared")
    train = {name: given[name] for name in ("micro_batch", "recompute") if name in given}
    return replace(
        config,
        parallel=replace(
            config.parallel,
            **parallel,
            sequence=parallel["tensor"] > 1,
            vision_placement=placement,
            layers_per_stage=given.get(_LAYERS),
        ),
        train=replace(config.train, **train),
    )


def _pairs(text: str) -> dict[str, Any]:
    known = ", ".join((*_NUMBERS, *_WORDS, _LAYERS))
    given: dict[str, Any] = {}
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        if name in given:
            raise ConfigError(f"{name} is given twice in the layout {text}. Give it once.")
        if name in _WORDS and value in _WORDS[name]:
            given[name] = value
        elif name in _NUMBERS and _is_number(value) and int(value) > 0:
            given[name] = int(value)
        elif name == _LAYERS and all(map(_is_number, value.split("+"))):
            given[name] = tuple(map(int, value.split("+")))
        else:
            raise ConfigError(
                f"{pair.strip() or 'nothing'} is no part of a layout. Give some of {known}, such "
                "as tensor=2,pipeline=4,recompute=full,layers_per_stage=7+9+8+8."
            )
    return given


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 9

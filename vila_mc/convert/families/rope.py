"""Rotary positions in a config.json: every spelling of transformers 4 and 5, both ways."""

from typing import Any

from vila_mc.config.model import RopeConfig
from vila_mc.convert.config_values import ConfigValues

_SPELLINGS = ("rope_parameters", "rope_scaling")
"""What transformers 5 calls the settings, and what earlier ones do."""
_HARMLESS = {
    "default": (),
    "linear": ("original_max_position_embeddings",),
    "llama3": (),
}
"""Kinds of stretching that are computed here, each with the keys that change nothing in it."""


def read_rope(config: ConfigValues) -> tuple[float, RopeConfig]:
    """Base and stretching of a language model's rotary positions.

    Versions of transformers do not agree which spelling counts, so two that differ are refused.

    Raises:
        CheckpointError: a spelling contradicts another, differs from layer to layer, or asks for
            what this engine does not compute.
    """
    config.require("partial_rotary_factor", 1.0, None)
    bases = {"rope_theta": config.number("rope_theta")} if config.has("rope_theta") else {}
    found: dict[str, RopeConfig] = {}
    for spelling in _SPELLINGS:
        part = config.part(spelling)
        if part.has("rope_theta"):
            bases[f"{spelling}.rope_theta"] = part.number("rope_theta")
        if any(part.has(key) for key in part.values if key != "rope_theta"):
            found[spelling] = _stretching(part)
    for values, key in ((found, "rope_scaling"), (bases, "rope_theta")):
        if len(set(values.values())) > 1:
            raise config.refusal(
                key, f"it contradicts another of {', '.join(values)}. Keep the one that is meant."
            )
    return next(iter(bases.values()), 10000.0), next(iter(found.values()), RopeConfig())


def _stretching(rope: ConfigValues) -> RopeConfig:
    kind = rope.get("rope_type" if rope.has("rope_type") else "type") or "default"
    for key in ("rope_type", "type"):
        rope.require(key, *_HARMLESS, None)
        rope.require(key, kind, None)
    rope.get("rope_theta")
    rope.require("partial_rotary_factor", 1.0, None)
    rope.require("attention_factor", 1.0, None)
    config = RopeConfig()
    with rope.describing():
        if kind == "default":
            rope.require("factor", 1.0, None)
        elif kind == "linear":
            config = RopeConfig(scaling="linear", factor=rope.number("factor"))
        else:
            config = RopeConfig(
                scaling="llama3",
                factor=rope.number("factor"),
                low_frequency_factor=rope.number("low_freq_factor"),
                high_frequency_factor=rope.number("high_freq_factor"),
                original_positions=rope.size("original_max_position_embeddings"),
            )
    rope.refuse_others(_HARMLESS[kind])
    return config


def rope_scaling_json(rope: RopeConfig) -> dict[str, Any]:
    """``rope_scaling``. Before 4.43 transformers knew only ``linear``, and in two words."""
    if rope.scaling == "linear":
        return {"type": "linear", "factor": rope.factor}
    return rope_json(rope)


def rope_json(rope: RopeConfig) -> dict[str, Any]:
    """``rope_parameters``, without the base."""
    if rope.scaling == "none":
        return {"rope_type": "default"}
    if rope.scaling == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_frequency_factor,
        "high_freq_factor": rope.high_frequency_factor,
        "original_max_position_embeddings": rope.original_positions,
    }

"""Where a checkpoint keeps every parameter of a model, whatever layout wrote it: no torch.

It is Megatron-Core's format: all layers of a decoder are one global tensor with an axis of layers
in front, gate and up are two boxes of it, and the norms in front of a projection are named as
Transformer Engine fuses them. Tests compare it with what Megatron-Core says of a built model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vila_mc.config.lora import LoraConfig
from vila_mc.config.model import ModelConfig
from vila_mc.topology.shapes import NO_ADAPTERS, Parameter, Shape, model_parameters

_LAYER = re.compile(r"(?P<decoder>(?P<part>\w+)\.decoder\.layers)\.(?P<layer>\d+)\.(?P<name>.+)")
_FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.bias": "mlp.linear_fc1.layer_norm_bias",
}
"""What Transformer Engine's fused layers call their norms. A checkpoint has these names in the
language model and the others in the vision tower, whatever the layers are made of."""
_WITH_EXTRA_STATE = (
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Modules of a layer for which Megatron-Core asks for an object besides tensors."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece of a parameter lies in a checkpoint."""

    key: str
    """Name of the global tensor, which may hold all layers."""
    start: Shape
    size: Shape


def places_of(parameter: Parameter) -> list[Place]:
    """The pieces of a parameter of a whole model, from top to bottom."""
    key, layers = parameter.name, Shape()
    if match := _LAYER.fullmatch(parameter.name):
        fused = _FUSED_NORMS if match["part"] == "language" else {}
        key = f"{match['decoder']}.{fused.get(match['name'], match['name'])}"
        layers = (int(match["layer"]),)
    rows, *columns = parameter.shape
    height = rows // parameter.blocks
    ones, zeros = (1,) * len(layers), (0,) * len(columns)
    return [
        Place(key, (*layers, block * height, *zeros), (*ones, height, *columns))
        for block in range(parameter.blocks)
    ]


def key_of(built: str) -> str:
    """The key in a checkpoint of what a built model calls ``built``, with layers of any kind."""
    if not built.startswith("vision."):
        return built
    for separate, fused in _FUSED_NORMS.items():
        built = built.removesuffix(fused) + separate if built.endswith(f".{fused}") else built
    return built


def is_empty_object(key: str) -> bool:
    """Whether a checkpoint keeps nothing but the name of this object, see ``empty_objects``."""
    return key.removesuffix("._extra_state").endswith(_WITH_EXTRA_STATE)


def empty_objects(model: ModelConfig) -> Iterator[str]:
    """Keys of what a checkpoint keeps besides tensors: nothing, but Megatron-Core asks for it."""
    for part, layers in (
        ("vision", model.vision.built_layers()),
        ("language", model.language.layers),
    ):
        for layer in range(layers):
            for module in _WITH_EXTRA_STATE:
                key = f"{part}.decoder.layers.{module}._extra_state"
                yield f"{key}/shard_{layer}_{layers}"


def model_places(
    model: ModelConfig, lora: LoraConfig = NO_ADAPTERS
) -> dict[str, tuple[Shape, list[Place]]]:
    """The shape and the pieces of every parameter of a whole model, by name."""
    return {each.name: (each.shape, places_of(each)) for each in model_parameters(model, lora)}

"""LoRA adapters in the words of Hugging Face's projections, and merged into the weights.

The name tables say which projections lie in a weight and how: an adapter's product has the shape of
its projection, so the rows that join projections also join products.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors
from vila_mc.config.lora import ADAPTABLE, AdaptedPart, LoraConfig, adapter_names, is_adapter
from vila_mc.config.model import ModelConfig
from vila_mc.convert.names import Table, language_table, vision_table
from vila_mc.convert.transforms import Row

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection that has an adapter."""

    ours: tuple[str, str]
    """Names of A [rank, inputs] and B [outputs, rank] in training."""
    theirs: str
    """Its name within its part in Hugging Face, such as ``model.layers.0.mlp.up_proj``."""


def adapted_rows(
    model: ModelConfig, lora: LoraConfig, part: AdaptedPart
) -> Iterator[tuple[Row, Table, list[Projection]]]:
    """Every weight of a part beside which there are adapters, with its table and these."""
    table = language_table(model.language) if part == "language" else vision_table(model.vision)
    layers = {layer.name for layer in ADAPTABLE[part]}
    for row in table.rows:
        module = row.ours.removesuffix(_WEIGHT)
        if module == row.ours or not module.endswith(tuple(layers)):
            continue
        projections = []
        for name in row.their_shapes(table.sizes):
            theirs = name.removesuffix(_WEIGHT)
            target = theirs.rpartition(".")[2]
            if target in lora.targets_of(part):
                a, b = (f"{module}.{factor}" for factor in adapter_names(target))
                projections.append(Projection((a, b), theirs))
        if projections:
            yield row, table, projections


def merged(tensors: LazyTensors, model: ModelConfig, lora: LoraConfig) -> dict[str, LazyTensor]:
    """The parameters of a model that computes the same without adapters.

    Args:
        tensors: every parameter, adapters too.
        model: its shape.
        lora: its adapters.

    Returns:
        Every parameter of the model alone; those beside adapters in fp32, summed when read.
    """
    whole = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for part in lora.parts():
        for row, table, projections in adapted_rows(model, lora, part):
            weight = whole[row.ours]
            whole[row.ours] = LazyTensor(
                weight.shape,
                torch.float32,
                lambda weight=weight, row=row, table=table, projections=projections: (  # type: ignore[misc]
                    weight.read().float()
                    + row.join(_products(tensors, lora, row, table, projections), table.sizes)
                ),
            )
    return whole


def _products(
    tensors: LazyTensors, lora: LoraConfig, row: Row, table: Table, projections: list[Projection]
) -> dict[str, Tensor]:
    """What is added to each projection of a weight, in fp32."""
    products = {name: torch.zeros(shape) for name, shape in row.their_shapes(table.sizes).items()}
    for projection in projections:
        a, b = (tensors[name].read().float() for name in projection.ours)
        products[f"{projection.theirs}{_WEIGHT}"] = lora.scale() * (b @ a)
    return products

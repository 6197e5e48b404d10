"""What a checkpoint holds of the optimizer where only some layers learn.

Megatron-Core keeps all layers of a decoder in one global tensor with an axis of layers in front,
and so their moments. Of layers that are frozen there are none, and a tensor with holes is refused:
the axis of the moments counts the layers that learn, in their order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks

_LAYER = re.compile(r"(vision|language)\.decoder\.layers\.(\d+)\.")
_Weights = Mapping[str, Any]
"""Descriptions of a stage's weights by their names in it."""


def with_learning_layers_alone(
    stages: Sequence[VilaModel], weights: Sequence[_Weights], ranks: Ranks
) -> list[dict[str, Any]]:
    """Descriptions of weights for their moments; every rank must call this together.

    Args:
        stages: this rank's stages.
        weights: the description of each stage's.
        ranks: this rank and its groups.
    """
    mine = [
        (weights_of_stage[name].key, layer)
        for stage, weights_of_stage in zip(stages, weights, strict=True)
        for name, _, layer in _learning(stage, weights_of_stage)
    ]
    by_rank: list[list[tuple[str, int]]] = [[] for _ in range(ranks.layout.pipeline)]
    dist.all_gather_object(by_rank, mine, group=ranks.groups.pp)
    learning: dict[str, list[int]] = {}
    for key, layer in sorted(pair for pairs in by_rank for pair in pairs):
        learning.setdefault(key, []).append(layer)
    described = []
    for stage, weights_of_stage in zip(stages, weights, strict=True):
        changed = {}
        for name, depth, layer in _learning(stage, weights_of_stage):
            layers = learning[weights_of_stage[name].key]
            if len(layers) < depth:
                changed[name] = _renumbered(weights_of_stage[name], layers, layer)
        described.append({**weights_of_stage, **changed})
    return described


def _learning(stage: VilaModel, weights: _Weights) -> Iterator[tuple[str, int, int]]:
    """Name, number of layers of its part and own layer of every weight of a layer that learns."""
    model = stage.run_config.model
    depths = {"vision": model.vision.built_layers(), "language": model.language.layers}
    first = {"vision": 0, "language": stage.plan.layers.start}
    for name, entry in weights.items():
        match = _LAYER.match(name)
        if match and getattr(entry.data, "requires_grad", False):
            yield name, depths[match[1]], first[match[1]] + int(match[2])


def _renumbered(entry: Any, layers: Sequence[int], layer: int) -> Any:
    """The description of ``layer`` in a tensor that holds ``layers`` alone."""
    if isinstance(entry, ShardedTensorFactory):
        build = entry.build_fn
        return replace(
            entry,
            build_fn=lambda *arguments: [
                _renumbered(part, layers, layer) for part in build(*arguments)
            ],
        )
    assert isinstance(entry, ShardedTensor), entry.key
    assert entry.prepend_axis_num == 1, entry.key
    return replace(
        entry,
        global_shape=(len(layers), *entry.global_shape[1:]),
        global_offset=(layers.index(layer), *entry.global_offset[1:]),
        axis_fragmentations=(len(layers), *(entry.axis_fragmentations or ())[1:]),
    )

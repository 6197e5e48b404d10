"""What FP8's delayed recipe remembers, as plain tensors that any layout reads.

Transformer Engine keeps it in pickles, which are never read here. Scales and histories are the same
on all ranks of a layer: greatest values are reduced over tensor- and data-parallel ranks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from torch import Tensor

from vila_mc.model.fp8 import delayed_scales
from vila_mc.model.vila_model import VilaModel

FP8 = "fp8"
"""First word of all keys."""


def fp8_state(stage: VilaModel, described: Mapping[str, Any]) -> dict[str, ShardedTensor]:
    """Scales and histories of a stage; the axis of layers comes first, as that of weights does.

    Args:
        stage: a stage.
        described: what Megatron-Core says of it: for each linear layer an object that knows which
            layer it is, and which ranks have the same.
    """
    state = {}
    for name, entry in described.items():
        if not isinstance(entry, ShardedObject):
            continue
        module = stage.get_submodule(name.removesuffix("._extra_state"))
        for what, tensor in delayed_scales(module).items():
            key = f"{FP8}.{entry.key.removesuffix('._extra_state')}.{what}"
            ((layer,), (num_layers,)) = entry.global_offset, entry.global_shape
            state[f"{name}.{what}"] = ShardedTensor.from_rank_offsets(
                key,
                tensor,
                (0, layer, num_layers),
                replica_id=entry.replica_id,
                prepend_axis_num=1,
            )
    return state


def that_are_kept(
    state: Mapping[str, ShardedTensor], stored: Mapping[str, tuple[int, ...] | None]
) -> dict[str, ShardedTensor]:
    """What of ``state`` a checkpoint has; nothing where its history is of another length."""
    fits = all(stored.get(entry.key) == tuple(entry.global_shape) for entry in state.values())
    return dict(state) if fits else {}


def put_fp8_state(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write what was loaded, the second of each pair, into the first."""
    with torch.no_grad():
        for tensor, loaded in pairs:
            tensor.copy_(loaded)

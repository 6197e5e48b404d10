"""No backward pass below the lowest layer that learns.

Megatron-Core 0.19.2 takes for granted that every stage learns, or at least its first layer.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.recompute import checkpointed_forward
from torch import Tensor

from vila_mc.parallel.megatron_patches import RECOMPUTE_ABOVE_FROZEN

_NOTHING: list[Tensor | None] = [None]


class NoGradientFromAbove(P2PCommunicator):  # type: ignore[misc]
    """Messages of a stage that neither learns nor stands above one that does.

    The stage above it has no gradient for it and sends none; here nobody waits for one.
    """

    def recv_backward(self, tensor_shapes: Any, is_last_stage: bool) -> list[Tensor | None]:
        """Nothing comes."""
        return _NOTHING

    def send_forward_recv_backward(
        self, output_tensors: Any, tensor_shapes: Any, is_last_stage: bool
    ) -> list[Tensor | None]:
        """Send alone."""
        self.send_forward(output_tensors, is_last_stage)
        return _NOTHING


@contextmanager
def recompute_above_frozen_layers() -> Iterator[None]:
    """While active, layers above frozen ones learn with recomputation, too.

    What is run to be recomputed gets gradients only if its input wants one: Megatron-Core's own
    would teach nothing to a layer whose input comes from frozen layers alone, without a word.
    """
    with RECOMPUTE_ABOVE_FROZEN.applied(_checkpointed_forward):
        yield


def _checkpointed_forward(block: Any, hidden_states: Tensor, **options: Any) -> Any:
    """Megatron-Core's; frozen layers whose input wants no gradient run as they are."""
    if hidden_states.requires_grad or not torch.is_grad_enabled():
        return checkpointed_forward(block, hidden_states=hidden_states, **options)
    learns = [any(weight.requires_grad for weight in each.parameters()) for each in block.layers]
    frozen = learns.index(True) if True in learns else len(learns)
    hidden = checkpointed_forward(
        _part(block, slice(frozen), is_recomputed=False), hidden_states=hidden_states, **options
    )
    if frozen == len(learns):
        return hidden
    return checkpointed_forward(
        _part(block, slice(frozen, None)),
        hidden_states=hidden.detach().requires_grad_(),
        **options,
    )


def _part(block: Any, layers: slice, *, is_recomputed: bool = True) -> Any:
    """What ``checkpointed_forward`` reads of a block, with some of its layers."""
    chosen, config = block.layers[layers], copy.copy(block.config)
    if not is_recomputed:
        config.recompute_method, config.recompute_num_layers = "block", 0
    return SimpleNamespace(
        layers=chosen,
        num_layers_per_pipeline_rank=len(chosen),
        config=config,
        pg_collection=block.pg_collection,
    )

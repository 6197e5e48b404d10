"""The norm of gradients and their clipping, on machines without Transformer Engine's or Apex's.

Megatron-Core 0.19.2's own stand-ins bring the norm of every tensor to the host, one by one, some
hundred small copies a step; and they scale through a copy of each gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_l2_norm
from torch import Tensor

from vila_mc.parallel.megatron_patches import NORM_ON_DEVICE

_Lists = Sequence[Sequence[Tensor]]


@contextmanager
def norm_on_the_device() -> Iterator[None]:
    """While active, all norms become one on the device, and gradients are clipped in place.

    Nothing is replaced where Transformer Engine or Apex is used.
    """
    if clip_grads.l2_norm_impl is not local_multi_tensor_l2_norm:
        yield
        return
    with NORM_ON_DEVICE.applied(_l2_norm, _scale):
        yield


def _l2_norm(chunk: int, overflow: Tensor, lists: _Lists, *_: Any) -> tuple[Tensor, None]:
    """[1] fp32 norm over the one list of tensors."""
    (tensors,) = lists
    norms = torch._foreach_norm(list(tensors))
    return torch.linalg.vector_norm(torch.stack(norms)).float().view(1), None


def _scale(chunk: int, overflow: Tensor, lists: _Lists, factor: float) -> None:
    """The second list becomes ``factor`` times the first; Megatron-Core gives the same twice."""
    sources, targets = lists
    for source, target in zip(sources, targets, strict=True):
        if source is not target:
            target.copy_(source)
    torch._foreach_mul_(list(targets), factor)

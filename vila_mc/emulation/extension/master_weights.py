"""Casting a shard of fp32 master weights into block-scaled FP8 parameters.

Each data-parallel rank holds part of a flattened [h, w] matrix; amaxes of blocks are reduced over
the ranks between the two calls.

Source: pytorch/csrc/extensions/fp8_partial_cast.cpp, common/recipe/fp8_block_scaling.cu.
"""

from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.block_scaling import BLOCK, tiles
from vila_mc.emulation.extension.factors import ceil_div
from vila_mc.emulation.extension.number_formats import to_fp8_bytes


def fp8_block_scaling_compute_partial_amax(
    tensor: Tensor, amax: Tensor, h: int, w: int, start_offset: int, block_len: int
) -> None:
    """Amaxes of the 128 x 128 blocks [h / 128, w / 128], as far as this shard reaches."""
    _check(block_len)
    whole = torch.zeros(h * w)
    whole[start_offset : start_offset + tensor.numel()] = tensor.reshape(-1).float()
    blocks = tiles(whole.view(h, w)).abs().amax((1, 3))
    amax[: blocks.shape[0], : blocks.shape[1]] = blocks


def fp8_block_scaling_partial_cast(
    inp: Tensor,
    out: Tensor,
    scale: Tensor,
    h: int,
    w: int,
    start_offset: int,
    block_len: int,
    out_dtype: Any,
) -> None:
    """Bytes of this shard, with the scales of the blocks that its values lie in."""
    _check(block_len)
    scale = scale[: ceil_div(h, BLOCK), : ceil_div(w, BLOCK)]
    factors = scale.repeat_interleave(BLOCK, 0)[:h].repeat_interleave(BLOCK, 1)[:, :w].reshape(-1)
    values = inp.reshape(-1).float() * factors[start_offset : start_offset + inp.numel()]
    out.copy_(to_fp8_bytes(values, out_dtype).view(out.shape))


def _check(block_len: int) -> None:
    if block_len != BLOCK:
        raise RuntimeError(f"Currently only block_len = {BLOCK} is supported")

"""Casting a shard of fp32 master weights into block-scaled FP8 parameters.

Each data-parallel rank holds part of a flattened [h, w] matrix; amaxes of blocks are reduced over
the ranks between the two calls.

Source: pytorch/csrc/extensions/fp8_partial_cast.cpp, common/recipe/fp8_block_scaling.cu,
mxfp8_scaling.cu, common/multi_tensor/compute_scale.cu.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension import mxfp8
from vila_mc.emulation.extension.block_scaling import BLOCK, tiles
from vila_mc.emulation.extension.factors import ceil_div
from vila_mc.emulation.extension.number_formats import (
    E4M3,
    LARGEST,
    power_of_two,
    to_exponents,
    to_fp8_bytes,
)


def fp8_block_scaling_compute_partial_amax(
    tensor: Tensor, amax: Tensor, h: int, w: int, start_offset: int, block_len: int
) -> None:
    """Amaxes of the 128 x 128 blocks [h / 128, w / 128], as far as this shard reaches."""
    _check(block_len)
    blocks = tiles(_in_its_place(tensor, h, w, start_offset)).abs().amax((1, 3))
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


def mxfp8_scaling_compute_partial_amax(
    input: Tensor,
    amax_rowwise: Tensor,
    amax_colwise: Tensor,
    rows: int,
    cols: int,
    start_offset: int,
) -> None:
    """Amaxes of blocks of 32 along rows and along columns, as far as this shard reaches."""
    values = _in_its_place(input, rows, cols, start_offset).abs()
    along_rows = values.view(rows, -1, mxfp8.BLOCK).amax(-1)
    amax_rowwise[:rows, : along_rows.shape[1]] = along_rows
    amax_colwise[: rows // mxfp8.BLOCK, :cols] = values.view(-1, mxfp8.BLOCK, cols).amax(1)


def multi_tensor_compute_scale_inv_e8m0(
    chunk_size: int, dummy: None, tensor_lists: Sequence[Sequence[Tensor]]
) -> None:
    """[amaxes, exponents]: the powers of two that E4M3 values are to be multiplied by."""
    for amax, exponents in zip(*tensor_lists, strict=True):
        exponents.copy_(to_exponents(amax.float() * (1.0 / LARGEST[E4M3])))


def mxfp8_scaling_partial_cast(
    input: Tensor,
    output_rowwise: Tensor,
    output_colwise: Tensor,
    scale_inv_rowwise: Tensor,
    scale_inv_colwise: Tensor,
    rows: int,
    cols: int,
    start_offset: int,
) -> None:
    """Bytes of this shard in both copies, with the exponents of the blocks that they lie in."""
    by_rows = power_of_two(scale_inv_rowwise[:rows, : cols // mxfp8.BLOCK])
    by_columns = power_of_two(scale_inv_colwise[: rows // mxfp8.BLOCK, :cols])
    for powers, out in (
        (by_rows.repeat_interleave(mxfp8.BLOCK, 1), output_rowwise),
        (by_columns.repeat_interleave(mxfp8.BLOCK, 0), output_colwise),
    ):
        shard = powers.reshape(-1)[start_offset : start_offset + input.numel()]
        out.copy_(to_fp8_bytes(input.reshape(-1).float() / shard, E4M3).view(out.shape))


def _in_its_place(shard: Tensor, rows: int, columns: int, start: int) -> Tensor:
    """A shard of a flattened matrix, among zeros."""
    whole = torch.zeros(rows * columns)
    whole[start : start + shard.numel()] = shard.reshape(-1).float()
    return whole.view(rows, columns)


def _check(block_len: int) -> None:
    if block_len != BLOCK:
        raise RuntimeError(f"Currently only block_len = {BLOCK} is supported")

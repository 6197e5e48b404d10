"""Rotary positions.

Source: pytorch/csrc/extensions/apply_rope.cpp, common/fused_rope/fused_rope.cu.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def fused_rope_forward(
    input: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    qkv_format: Any,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Turn the first widths of each head by the angles ``freqs`` [s, 1, 1, width].

    Args:
        input: [s, b, a, d], [b, s, a, d] or [t, a, d], as ``qkv_format`` says.
        cu_seqlens: where samples of [t, a, d] end; each starts at position 0.
    """
    return _turn(
        input, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, _forward
    )


def fused_rope_backward(
    output_grads: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    qkv_format: Any,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Turn gradients back."""
    return _turn(
        output_grads,
        freqs,
        start_positions,
        qkv_format,
        interleaved,
        cu_seqlens,
        cp_size,
        _backward,
    )


def _turn(
    tensor: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    qkv_format: Any,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    rotate: Any,
) -> Tensor:
    if cp_size != 1 or start_positions is not None:
        raise NotImplementedError(
            "fused rope with context parallelism or start positions is not emulated on a CPU"
        )
    angles = freqs.float()
    layout = qkv_format.name
    if layout == "NVTE_SBHD":
        return _head(tensor, angles[: tensor.shape[0]], interleaved, rotate)
    if layout == "NVTE_BSHD":
        return _head(tensor, angles[: tensor.shape[1]].transpose(0, 1), interleaved, rotate)
    assert cu_seqlens is not None, "samples of rows have ends"
    ends = cu_seqlens.tolist()
    samples = [
        _head(tensor[start:end], angles[: end - start, 0], interleaved, rotate)
        for start, end in pairwise(ends)
    ]
    return torch.cat(samples)


def _head(tensor: Tensor, angles: Tensor, interleaved: bool, rotate: Any) -> Tensor:
    """The widths that have angles are turned, the others stay."""
    width = angles.shape[-1]
    turned = rotate(tensor[..., :width].float(), angles, interleaved)
    return torch.cat((turned.to(tensor.dtype), tensor[..., width:]), -1)


def _forward(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    return x * angles.cos() + _quarter(x, interleaved) * angles.sin()


def _backward(grad: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    # The transpose of a quarter turn is the turn the other way.
    return grad * angles.cos() - _quarter(grad * angles.sin(), interleaved)


def _quarter(x: Tensor, interleaved: bool) -> Tensor:
    """(x1, x2) -> (-x2, x1): of halves, or of neighbours."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)

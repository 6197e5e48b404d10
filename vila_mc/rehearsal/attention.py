"""Which of torch's attention kernels a GPU takes: torch asks the device, which is not there."""

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["flash", "efficient", "math"]
_WIDEST_HEAD = 256
_HALF = (torch.bfloat16, torch.float16)


def kernel_of_a_gpu(dtype: torch.dtype, head_width: int, *, is_grouped: bool) -> Kernel:
    """The kernel that ``scaled_dot_product_attention`` takes on an A100 or an H100, without a mask.

    Where torch prefers cuDNN's (on an H100) it says flash: both keep the same tensors.

    Source:
        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp of torch 2.11 to 2.14: flash wants half
        precision and heads of at most 256; the memory-efficient one wants widths that fill 16 bytes
        and as many heads of keys as of queries; the last one keeps all scores.
    """
    if dtype in _HALF and head_width <= _WIDEST_HEAD:
        return "flash"
    if not is_grouped and head_width * dtype.itemsize % 16 == 0 and dtype.itemsize <= 4:
        return "efficient"
    return "math"


def attention_of_a_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` by that kernel. [b, a, s, d]."""
    assert attn_mask is None, "masks are given by type"
    aten, width = torch.ops.aten, query.size(-1)
    kernel = kernel_of_a_gpu(query.dtype, width, is_grouped=query.size(1) != key.size(1))
    output: Tensor
    if kernel == "flash":
        padding = -width % 8  # as torch does before it calls this kernel
        if padding:
            query, key, value = (
                torch.nn.functional.pad(t, (0, padding)) for t in (query, key, value)
            )
        scale = width**-0.5 if scale is None else scale
        output = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return output[..., :width] if padding else output
    if kernel == "efficient":
        keeps = torch.is_grad_enabled() and query.requires_grad
        output = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, keeps, dropout_p, is_causal, scale=scale
        )[0]
        return output
    output = aten._scaled_dot_product_attention_math(
        query, key, value, None, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return output

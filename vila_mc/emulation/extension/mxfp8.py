"""MXFP8: blocks of 32 values with a power of two each, along rows and, for the other copy, columns.

Both copies have the tensor's own shape. Scales stay as they are (the GPU reorders them for its
GEMM, which says nothing about their values).

Source: pytorch/csrc/quantizer.cpp (MXFP8Quantizer), common/cast/mxfp8/quantize_mxfp8.cuh.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.factors import round_up
from vila_mc.emulation.extension.number_formats import (
    LARGEST,
    from_fp8_bytes,
    power_of_two,
    to_exponents,
    to_fp8_bytes,
)
from vila_mc.emulation.extension.storage import coerce_copies, construct, empty_bytes

BLOCK = 32


def create(quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    """An empty tensor with the copies that the quantizer's usages ask for."""
    from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Tensor
    from transformer_engine.pytorch.tensor.storage.mxfp8_tensor_storage import MXFP8TensorStorage

    rows, columns = prod(shape[:-1]), shape[-1]
    if rows % BLOCK or columns % BLOCK:
        raise RuntimeError(
            f"MXFP8 requires tensor dims that are divisible by {BLOCK} (got shape={tuple(shape)})"
        )
    rowwise = (round_up(rows, 128), round_up(columns // BLOCK, 4))
    columnwise = (round_up(rows // BLOCK, 4), round_up(columns, 128))
    buffers: dict[str, Any] = {}
    for name, is_used, scales in (
        ("rowwise", quantizer.rowwise_usage, rowwise),
        ("columnwise", quantizer.columnwise_usage, columnwise),
    ):
        buffers[f"{name}_data"] = empty_bytes(shape, device) if is_used else None
        buffers[f"{name}_scale_inv"] = empty_bytes(scales, device) if is_used else None
    return construct(
        MXFP8TensorStorage if quantizer.internal else MXFP8Tensor,
        quantizer,
        shape,
        dtype,
        device,
        with_gemm_swizzled_scales=False,
        **buffers,
    )


def coerce(quantizer: Any, tensor: Any) -> None:
    """Give an existing tensor the copies that the quantizer's usages ask for, and no others."""
    coerce_copies(quantizer, tensor, create)
    tensor._with_gemm_swizzled_scales = False


def fill(quantizer: Any, tensor: Any, values: Tensor, amax: Tensor | None = None) -> None:
    """Cast each block with the power of two that its amax fits under."""
    if getattr(quantizer, "with_2d_quantization", False):
        raise NotImplementedError("MXFP8 with blocks of 32 x 32 is not emulated on a CPU")
    matrix = values.reshape(-1, values.shape[-1]).float()
    if quantizer.rowwise_usage:
        data, exponents = _cast(matrix, quantizer.dtype)
        _write(tensor._rowwise_data, tensor._rowwise_scale_inv, data, exponents)
    if quantizer.columnwise_usage:
        data, exponents = _cast(matrix.t(), quantizer.dtype)
        _write(tensor._columnwise_data, tensor._columnwise_scale_inv, data.t(), exponents.t())


def operand(tensor: Any, *, rowwise: bool) -> Tensor:
    """What a GEMM multiplies, [leading, last] in fp32."""
    data = tensor._rowwise_data if rowwise else tensor._columnwise_data
    scale_inv = tensor._rowwise_scale_inv if rowwise else tensor._columnwise_scale_inv
    if data is None:
        name = "row-wise" if rowwise else "column-wise"
        raise RuntimeError(f"an FP8 input of a GEMM is missing {name} usage")
    matrix = data.reshape(-1, data.shape[-1])
    values = from_fp8_bytes(matrix, tensor._fp8_dtype)
    rows, columns = values.shape
    factors = power_of_two(scale_inv)
    if rowwise:
        return values * factors[:rows, : columns // BLOCK].repeat_interleave(BLOCK, 1)
    return values * factors[: rows // BLOCK, :columns].repeat_interleave(BLOCK, 0)


def _cast(matrix: Tensor, dtype: Any) -> tuple[Tensor, Tensor]:
    """Bytes and exponents of a matrix in blocks along its rows."""
    blocks = matrix.reshape(matrix.shape[0], -1, BLOCK)
    exponents = to_exponents(blocks.abs().amax(-1) * (1.0 / LARGEST[int(dtype)]))
    data = to_fp8_bytes(blocks / power_of_two(exponents)[..., None], dtype)
    return data.reshape(matrix.shape), exponents


def _write(data: Tensor, scale_inv: Tensor, new_data: Tensor, exponents: Tensor) -> None:
    data.copy_(new_data.reshape(data.shape))
    rows, columns = exponents.shape
    scale_inv.zero_()
    scale_inv[:rows, :columns] = exponents

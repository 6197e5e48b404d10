"""FP8 with a scale for each block: 1 x 128 for activations and gradients, 128 x 128 for weights.

The columnwise copy is quantized by itself from the transposed values: its blocks run the other way.

Source: pytorch/csrc/quantizer.cpp (Float8BlockQuantizer), common/transpose/
quantize_transpose_vector_blockwise.cu, quantize_transpose_square_blockwise.cu.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.emulation.extension.factors import ceil_div, round_up, scale_from_amax
from vila_mc.emulation.extension.number_formats import LARGEST, from_fp8_bytes, to_fp8_bytes
from vila_mc.emulation.extension.storage import (
    coerce_copies,
    construct,
    empty_bytes,
    empty_floats,
)

BLOCK = 128


def create(quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    """An empty tensor with the copies that the quantizer's usages ask for."""
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockwiseQTensor
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import (
        Float8BlockwiseQTensorStorage,
    )

    buffers: dict[str, Any] = {}
    for name, is_used, rows in (
        ("rowwise", quantizer.rowwise_usage, shape),
        ("columnwise", quantizer.columnwise_usage, (*shape[-1:], *shape[:-1])),
    ):
        scales = _scale_shape(_matrix_shape(shape, name), quantizer)
        buffers[f"{name}_data"] = empty_bytes(rows, device) if is_used else None
        buffers[f"{name}_scale_inv"] = empty_floats(scales, device) if is_used else None
    return construct(
        Float8BlockwiseQTensorStorage if quantizer.internal else Float8BlockwiseQTensor,
        quantizer,
        shape,
        dtype,
        device,
        is_2D_scaled=quantizer.block_scaling_dim == 2,
        **buffers,
    )


def coerce(quantizer: Any, tensor: Any) -> None:
    """Give an existing tensor the copies that the quantizer's usages ask for, and no others."""
    coerce_copies(quantizer, tensor, create)


def fill(quantizer: Any, tensor: Any, values: Tensor, amax: Tensor | None = None) -> None:
    """Cast each block with a scale from its own amax."""
    matrix = values.reshape(-1, values.shape[-1])
    for is_used, part, data, scale_inv in (
        (quantizer.rowwise_usage, matrix, tensor._rowwise_data, tensor._rowwise_scale_inv),
        (
            quantizer.columnwise_usage,
            matrix.t(),
            tensor._columnwise_data,
            tensor._columnwise_scale_inv,
        ),
    ):
        if is_used:
            new_data, new_scale_inv = _cast(part, quantizer)
            data.copy_(new_data.reshape(data.shape))
            scale_inv.copy_(new_scale_inv)


def operand(tensor: Any, *, rowwise: bool) -> Tensor:
    """What a GEMM multiplies, [leading, last] in fp32."""
    name = "row-wise" if rowwise else "column-wise"
    data = tensor._rowwise_data if rowwise else tensor._columnwise_data
    scale_inv = tensor._rowwise_scale_inv if rowwise else tensor._columnwise_scale_inv
    if data is None:
        raise RuntimeError(f"an FP8 input of a GEMM is missing {name} usage")
    matrix = data.reshape(-1, data.shape[-1]) if rowwise else data.reshape(data.shape[0], -1)
    values = from_fp8_bytes(matrix, tensor._fp8_dtype)
    values = values * _of_every_value(scale_inv, matrix.shape, is_square=tensor._is_2D_scaled)
    return values if rowwise else values.t()


def tiles(matrix: Tensor) -> Tensor:
    """[rows / 128, 128, columns / 128, 128] of a matrix padded with zeros."""
    rows, columns = matrix.shape
    padded = F.pad(matrix.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    return padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)


def _matrix_shape(shape: Sequence[int], copy: str) -> tuple[int, int]:
    """Rows and columns of a copy: the columnwise one is transposed."""
    rows, columns = prod(shape[:-1]), shape[-1]
    return (rows, columns) if copy == "rowwise" else (columns, rows)


def _scale_shape(matrix: tuple[int, int], quantizer: Any) -> tuple[int, int]:
    """1-D scales are stored transposed; cuBLAS wants the second axis in fours."""
    rows, columns = matrix
    if quantizer.block_scaling_dim == 2:
        return ceil_div(rows, BLOCK), round_up(ceil_div(columns, BLOCK), 4)
    return ceil_div(columns, BLOCK), round_up(rows, 4)


def _cast(matrix: Tensor, quantizer: Any) -> tuple[Tensor, Tensor]:
    """Bytes of a matrix, and the inverse scales in their stored shape."""
    rows, columns = matrix.shape
    values = matrix.float()
    is_square = quantizer.block_scaling_dim == 2
    if is_square:
        amax = tiles(values).abs().amax((1, 3))
    else:
        padded = F.pad(values, (0, -columns % BLOCK))
        amax = padded.view(rows, -1, BLOCK).abs().amax(-1).t()  # stored transposed
    scale = scale_from_amax(
        amax,
        LARGEST[int(quantizer.dtype)],
        epsilon=quantizer.amax_epsilon,
        is_power_of_two=quantizer.force_pow_2_scales,
        for_infinity=torch.finfo(matrix.dtype).max,
    )
    scale_inv = torch.zeros(_scale_shape((rows, columns), quantizer))
    scale_inv[:, : scale.shape[1]] = 1.0 / scale
    factors = _of_every_value(scale, (rows, columns), is_square=is_square)
    return to_fp8_bytes(values * factors, quantizer.dtype), scale_inv


def _of_every_value(stored: Tensor, shape: Sequence[int], *, is_square: bool) -> Tensor:
    """Scales as they are stored, repeated for each value of a [rows, columns] matrix."""
    rows, columns = shape
    if is_square:
        stored = stored.repeat_interleave(BLOCK, 0)[:rows]
        return stored.repeat_interleave(BLOCK, 1)[:, :columns]
    return stored[:, :rows].t().repeat_interleave(BLOCK, 1)[:, :columns]

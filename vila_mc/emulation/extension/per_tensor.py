"""FP8 with one scale for a tensor: delayed scaling and current scaling.

Source: pytorch/csrc/quantizer.cpp (Float8Quantizer, Float8CurrentScalingQuantizer),
common/gemm/cublaslt_gemm.cu (CanonicalizeGemmInput).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vila_mc.emulation.extension import enums
from vila_mc.emulation.extension.capability import multiplies_fp8_in_any_layout
from vila_mc.emulation.extension.factors import scale_from_amax
from vila_mc.emulation.extension.number_formats import LARGEST, from_fp8_bytes, to_fp8_bytes
from vila_mc.emulation.extension.storage import construct, empty_bytes, empty_floats


def create(quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    """An empty tensor with the copies that the quantizer's usages ask for."""
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    has_data, has_transpose = _copies(quantizer)
    return construct(
        Float8TensorStorage if quantizer.internal else Float8Tensor,
        quantizer,
        shape,
        dtype,
        device,
        data=empty_bytes(shape, device) if has_data else None,
        data_transpose=empty_bytes(_transposed(shape), device) if has_transpose else None,
        fp8_scale_inv=empty_floats((1,), device),
    )


def coerce(quantizer: Any, tensor: Any) -> None:
    """Give an existing tensor the copies that the quantizer's usages ask for, and no others."""
    has_data, has_transpose = _copies(quantizer)
    if tensor._data is not None:
        shape, device = tensor._data.shape, tensor._data.device
    else:
        shape = (*tensor._transpose.shape[1:], tensor._transpose.shape[0])
        device = tensor._transpose.device
    if not has_data:
        tensor._data = None
    elif tensor._data is None:
        tensor._data = empty_bytes(shape, device)
    if not has_transpose:
        tensor._transpose = None
    elif tensor._transpose is None:
        tensor._transpose = empty_bytes(_transposed(shape), device)
    tensor._transpose_invalid = not has_transpose
    tensor._fp8_dtype = type(tensor._fp8_dtype)(int(quantizer.dtype))


def fill_delayed(quantizer: Any, tensor: Any, values: Tensor, amax: Tensor | None = None) -> None:
    """Cast with the scale of the past; note the amax for the future."""
    _remember(quantizer, values.abs().max().float() if amax is None else amax)
    _write(quantizer, tensor, values, quantizer.scale.reshape(1).float())


def fill_current(quantizer: Any, tensor: Any, values: Tensor, amax: Tensor | None = None) -> None:
    """Cast with a scale from the tensor's own amax, the greatest of the reduction group."""
    amax = (values.abs().max() if amax is None else amax).float().reshape(1)
    if quantizer.with_amax_reduction:
        group = quantizer._canonicalized_amax_reduction_group()
        dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=group)
    scale = scale_from_amax(
        amax,
        LARGEST[int(quantizer.dtype)],
        epsilon=quantizer.amax_epsilon,
        is_power_of_two=quantizer.force_pow_2_scales,
    )
    _write(quantizer, tensor, values, scale)


def operand(tensor: Any, *, rowwise: bool) -> Tensor:
    """What a GEMM multiplies, [leading, last] in fp32."""
    data: Any = tensor._data
    transpose: Any = None if tensor._transpose_invalid else tensor._transpose
    if multiplies_fp8_in_any_layout():
        rowwise = data is not None
    if (data if rowwise else transpose) is None:
        missing = "row-wise" if rowwise else "column-wise"
        raise RuntimeError(f"an FP8 input of a GEMM is missing {missing} usage")
    if rowwise:
        matrix = data.reshape(-1, data.shape[-1])
    else:
        matrix = transpose.reshape(transpose.shape[0], -1).t()
    scale_inv: Tensor = tensor._scale_inv
    return from_fp8_bytes(matrix.contiguous(), tensor._fp8_dtype) * scale_inv


def _remember(quantizer: Any, amax: Tensor) -> None:
    quantizer.amax.copy_(torch.fmax(quantizer.amax, amax))


def _copies(quantizer: Any) -> tuple[bool, bool]:
    """Whether there is row-wise data, and whether there is a transposed copy."""
    is_any_layout = multiplies_fp8_in_any_layout()
    return (
        quantizer.rowwise_usage or is_any_layout,
        quantizer.columnwise_usage and not is_any_layout,
    )


def _write(quantizer: Any, tensor: Any, values: Tensor, scale: Tensor) -> None:
    if tensor._data is None and enums.VERSION >= (2, 20):
        raise NotImplementedError("Columnwise-only per-tensor FP8 quantization is not implemented")
    data = to_fp8_bytes(values.float() * scale, quantizer.dtype)
    if tensor._data is not None:
        tensor._data.copy_(data.view(tensor._data.shape))
    if tensor._transpose is not None:
        rows = data.reshape(-1, data.shape[-1])
        tensor._transpose.copy_(rows.t().reshape(tensor._transpose.shape))
    tensor._scale_inv.copy_((1.0 / scale).view(tensor._scale_inv.shape))


def _transposed(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[-1:], *shape[:-1])

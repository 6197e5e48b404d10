"""Matrix products.

Source: pytorch/csrc/extensions/gemm.cpp, common/gemm/cublaslt_gemm.cu. Products are exact in fp32;
a GPU multiplies fp32 matrices in TF32, and sums FP8 products with fewer bits.
"""

from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.activations import gelu_of, vector_jacobian
from vila_mc.emulation.extension.number_formats import torch_type
from vila_mc.emulation.extension.scaling import cast_values, is_delayed, is_fp8, operand


def generic_gemm(
    A: Any,  # noqa: N803
    transA: bool,  # noqa: N803
    B: Any,  # noqa: N803
    transB: bool,  # noqa: N803
    D: Any,  # noqa: N803
    quantizer: Any,
    output_dtype: Any,
    bias: Tensor | None,
    bias_type: Any,
    gelu: bool,
    gelu_in: Tensor | None,
    grad: bool,
    workspace: Tensor,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Tensor | None = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
) -> list[Any]:
    """op(B) @ op(A), row-major: TN is x w^T, NN is dy w, NT is dy^T x.

    Args:
        D: where the result goes, or None. With ``accumulate`` beta times it is added.
        bias: added without ``grad``; with it, asks for the sum over the rows of B.
        gelu: apply it, or with ``grad`` multiply by its derivative at ``gelu_in``.

    Returns:
        result, gradient of the bias, input of the gelu, ``extra_output``.
    """
    if comm_overlap is not None:
        raise NotImplementedError("overlap of GEMMs with communication is not emulated on a CPU")
    if gelu and grad:
        assert gelu_in is not None, "the derivative of gelu is taken somewhere"
    if not accumulate and beta:
        raise RuntimeError("Trying to use non-zero beta while not accumulating into D tensor.")
    a, b = operand(A, rowwise=transA), operand(B, rowwise=not transB)
    left, right = (b.t() if transB else b), (a.t() if transA else a)
    _check_shape(A, B, left, right)
    values = (left @ right) * alpha
    if not transB:
        values = values.view(*B.size()[:-1], values.shape[-1])
    dtype = _result_type(A, D, quantizer, output_dtype)
    bias_grad = pre_gelu = None
    if grad:
        values, bias_grad = _gradients(values, b, bias, dtype, gelu_in if gelu else None)
    else:
        values = values if bias is None else values + bias.float()
        if gelu:
            pre_gelu = values.to(torch_type(bias_type) if is_fp8(A) else dtype)
            values = gelu_of(values)
    return [
        _store(values, D, dtype, quantizer, accumulate, beta, is_fp8(A) and is_delayed(quantizer)),
        bias_grad,
        pre_gelu,
        extra_output,
    ]


def _gradients(
    values: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu_in: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """A product of gradients through the gelu before it, if any, and the gradient of the bias."""
    if bias is not None and gelu_in is not None:
        raise NotImplementedError("a bias gradient fused with that of gelu is not emulated")
    if gelu_in is not None:
        values = vector_jacobian(gelu_of, values, gelu_in.view(values.shape))
    return values, None if bias is None else b.sum(0).to(dtype)


def _store(
    values: Tensor,
    result: Any,
    dtype: torch.dtype,
    quantizer: Any,
    accumulate: bool,
    beta: float | None,
    is_fused: bool,
) -> Any:
    """Into D where there is one; to FP8 straight from the GEMM, or after rounding to ``dtype``."""
    if quantizer is not None:
        if accumulate:
            raise RuntimeError("a GEMM does not accumulate into a quantized tensor")
        return cast_values(values if is_fused else values.to(dtype), dtype, quantizer, result)
    if result is None:
        return values.to(dtype)
    if accumulate:
        values = values + (1.0 if beta is None else beta) * result.float().view(values.shape)
    if result.numel() != values.numel():
        raise RuntimeError(
            f"GEMM output has invalid dims (expected {values.shape}, got {result.shape})"
        )
    return result.copy_(values.to(result.dtype).view(result.shape))


def _result_type(A: Any, D: Any, quantizer: Any, output_dtype: Any) -> torch.dtype:  # noqa: N803
    dtype: torch.dtype
    if D is not None and quantizer is None:
        dtype = D.dtype
        return dtype
    if output_dtype is not None:
        return torch_type(output_dtype)
    if is_fp8(A):
        raise RuntimeError("a GEMM of FP8 inputs needs to be told the type of its output")
    dtype = A.dtype
    return dtype


def _check_shape(A: Any, B: Any, left: Tensor, right: Tensor) -> None:  # noqa: N803
    """What cuBLAS refuses: sums of a length that is no multiple of 16, rows of 16 bytes."""
    rows, length = left.shape
    columns = right.shape[1]
    if right.shape[0] != length:
        raise RuntimeError(f"Invalid matrix dimensions for GEMM: {left.shape} by {right.shape}")
    if is_fp8(A) != is_fp8(B):
        raise RuntimeError("Inputs A and B to GEMM need to have compatible scaling modes")
    if not is_fp8(A):
        return
    is_one_dimensional = getattr(B, "_is_2D_scaled", True) is False
    if length % 16 or columns % 8 or (is_one_dimensional and rows % 8):
        raise RuntimeError(
            f"no FP8 kernel for [{rows}, {length}] x [{length}, {columns}]: the length of the sums "
            "must be a multiple of 16, the other sides of 8. Caller must pad."
        )

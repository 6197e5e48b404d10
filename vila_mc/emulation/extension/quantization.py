"""Quantizing tensors, by the recipe of their quantizer.

Source: pytorch/csrc/extensions/cast.cpp, bias.cpp, transpose.cpp.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.number_formats import torch_type
from vila_mc.emulation.extension.scaling import cast_values, operand, scaling_of


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop: Any = None) -> Any:
    """Quantize into a new tensor, or in place into ``output``.

    Args:
        noop: a flag [1]; where it is 1, ``output`` is left as it is.
    """
    return cast_values(tensor.detach().contiguous(), tensor.dtype, quantizer, output, noop=noop)


def dequantize(input: Any, otype: Any) -> Tensor:
    """The numbers that a quantized tensor stands for."""
    values = operand(input, rowwise=_has_rowwise(input))
    return values.reshape(tuple(input.size())).to(torch_type(otype))


def create_empty_quantized_tensor(
    quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: Any, pin_memory: bool
) -> Any:
    """A tensor that holds no numbers yet."""
    device = torch.device("meta" if torch.device(device).type == "meta" else "cpu")
    return scaling_of(quantizer).create(quantizer, shape, dtype, device)


def bgrad_quantize(input: Tensor, quantizer: Any) -> list[Any]:
    """The gradient of a bias, and the gradient of an output quantized."""
    bias = input.reshape(-1, input.shape[-1]).float().sum(0).to(input.dtype)
    return [bias, quantize(input, quantizer)]


def split_quantize(
    tensor: Tensor,
    split_sections: Sequence[int],
    quantizer_list: Iterable[Any],
    disable_bulk_allocation: bool = False,
) -> list[Any]:
    """Quantize parts of the first axis, each by its own quantizer."""
    parts = torch.split(tensor, list(split_sections))
    return [quantize(*each) for each in zip(parts, quantizer_list, strict=True)]


def multi_tensor_quantize(
    tensor_list: Iterable[Tensor], quantizer_list: Iterable[Any]
) -> list[Any]:
    """Quantize tensors, each by its own quantizer."""
    return [quantize(*each) for each in zip(tensor_list, quantizer_list, strict=True)]


def fp8_transpose(input: Tensor, dtype: Any, *, out: Tensor | None = None) -> Tensor:
    """The bytes with the last axis first. Source: pytorch/csrc/extensions/transpose.cpp."""
    matrix = input.reshape(-1, input.shape[-1]) if input.dim() else input
    result = matrix.t().reshape((*input.shape[-1:], *input.shape[:-1])).contiguous()
    return result if out is None else out.copy_(result)


def _has_rowwise(tensor: Any) -> bool:
    name = "_data" if hasattr(tensor, "_data") else "_rowwise_data"
    return getattr(tensor, name) is not None

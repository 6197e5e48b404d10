"""Making the Python tensors of Transformer Engine, and memory for them.

Memory that nothing has written is not a number here, so that whoever reads it is seen.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.number_formats import NOT_A_NUMBER


def construct(
    kind: Any,
    quantizer: Any,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    **buffers: Any,
) -> Any:
    """A tensor of class ``kind`` over ``buffers``, as the compiled extension constructs it."""
    buffers.update(fp8_dtype=quantizer.dtype, quantizer=quantizer)
    if quantizer.internal:
        return kind(fake_dtype=dtype, **buffers)
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return kind(shape=tuple(shape), stride=stride, dtype=dtype, device=device, **buffers)


def coerce_copies(quantizer: Any, tensor: Any, create: Callable[..., Any]) -> None:
    """Let a tensor hold the copies that are asked for, new ones from ``create``, and no others."""
    for copy, is_used in (
        ("rowwise", quantizer.rowwise_usage),
        ("columnwise", quantizer.columnwise_usage),
    ):
        names = (f"_{copy}_data", f"_{copy}_scale_inv")
        if is_used == (getattr(tensor, names[0]) is not None):
            continue
        fresh = create(quantizer, tensor.size(), torch.float32, torch.device("cpu"))
        vars(tensor).update({name: getattr(fresh, name) for name in names})
    tensor._fp8_dtype = type(tensor._fp8_dtype)(int(quantizer.dtype))


def empty_bytes(shape: Sequence[int], device: torch.device) -> Tensor:
    """FP8 data or E8M0 scales that are not numbers yet."""
    return torch.full(tuple(shape), NOT_A_NUMBER, dtype=torch.uint8, device=device)


def empty_floats(shape: Sequence[int], device: torch.device) -> Tensor:
    """Scales that are not numbers yet."""
    return torch.full(tuple(shape), math.nan, dtype=torch.float32, device=device)

"""How the tensors of each recipe are kept, by the class of their quantizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension import block_scaling, mxfp8, per_tensor


@dataclass(frozen=True, slots=True)
class Scaling:
    """How one recipe keeps tensors."""

    create: Callable[..., Any]
    """(quantizer, shape, dtype, device) -> an empty tensor."""
    coerce: Callable[..., None]
    """(quantizer, tensor): give it the copies that the quantizer's usages ask for."""
    fill: Callable[..., None]
    """(quantizer, tensor, values, amax): write values; their amax if it is known already."""


_DELAYED = Scaling(per_tensor.create, per_tensor.coerce, per_tensor.fill_delayed)
_CURRENT = Scaling(per_tensor.create, per_tensor.coerce, per_tensor.fill_current)
_BLOCKWISE = Scaling(block_scaling.create, block_scaling.coerce, block_scaling.fill)
_MXFP8 = Scaling(mxfp8.create, mxfp8.coerce, mxfp8.fill)
SCALINGS = {
    "Float8Quantizer": _DELAYED,
    "Float8CurrentScalingQuantizer": _CURRENT,
    "Float8BlockQuantizer": _BLOCKWISE,
    "MXFP8Quantizer": _MXFP8,
}
_CPU = torch.device("cpu")


def cast_values(
    values: Tensor,
    dtype: torch.dtype,
    quantizer: Any,
    output: Any = None,
    *,
    noop: Any = None,
    amax: Tensor | None = None,
) -> Any:
    """Quantize values of a tensor that is said to be of ``dtype``; None rounds to that type.

    Args:
        values: in fp32 where the GPU casts without rounding to ``dtype`` on the way.
        amax: the greatest magnitude, where a kernel has found it on the way.
    """
    if quantizer is None:
        rounded = values.to(dtype)
        return rounded if output is None else output.copy_(rounded.view(output.shape))
    scaling = scaling_of(quantizer)
    if output is None:
        output = scaling.create(quantizer, values.shape, dtype, _CPU)
    else:
        scaling.coerce(quantizer, output)
    is_noop = noop is not None and float(noop) == 1.0
    if values.numel() and not is_noop:
        scaling.fill(quantizer, output, values, amax)
    return output


def scaling_of(quantizer: Any) -> Scaling:
    """How the tensors of a quantizer are kept.

    Raises:
        NotImplementedError: its recipe is not emulated.
    """
    kind = type(quantizer).__name__
    if kind not in SCALINGS:
        raise NotImplementedError(f"{kind} is not emulated on a CPU; {', '.join(SCALINGS)} are")
    return SCALINGS[kind]


def is_delayed(quantizer: Any) -> bool:
    """Whether a quantizer's scale is known beforehand, so that kernels cast as they go."""
    return type(quantizer).__name__ == "Float8Quantizer"


def is_current(quantizer: Any) -> bool:
    """Whether a quantizer wants the amax of a whole tensor first."""
    return type(quantizer).__name__ == "Float8CurrentScalingQuantizer"


def operand(tensor: Any, *, rowwise: bool) -> Tensor:
    """What a GEMM multiplies, [leading, last] in fp32: of one copy, or of a plain tensor."""
    name = type(tensor).__name__
    for prefix, of in (
        ("Float8Blockwise", block_scaling.operand),
        ("Float8Tensor", per_tensor.operand),
        ("MXFP8", mxfp8.operand),
    ):
        if name.startswith(prefix):
            return of(tensor, rowwise=rowwise)
    if not isinstance(tensor, Tensor) or hasattr(tensor, "_quantizer"):
        raise NotImplementedError(f"{name} is not emulated on a CPU")
    return tensor.detach().reshape(-1, tensor.shape[-1]).float()


def is_fp8(tensor: Any) -> bool:
    """Whether a tensor is kept in FP8."""
    return type(tensor).__name__.startswith(("Float8", "MXFP8"))

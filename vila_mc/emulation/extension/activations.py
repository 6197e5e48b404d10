"""Activations, gated ones and their backward passes.

Source: pytorch/csrc/extensions/activation.cpp, bias.cpp, common/activation/, common/util/math.h.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.emulation.extension.scaling import cast_values, is_current, is_delayed

Function = Callable[[Tensor], Tensor]


def gelu_of(x: Tensor) -> Tensor:
    """The tanh form."""
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_POINTWISE: dict[str, Function] = {
    "gelu": gelu_of,
    "qgelu": _quick_gelu,
    "relu": torch.relu,
    "srelu": _squared_relu,
    "silu": F.silu,
}
_GATED: dict[str, Function] = {
    "geglu": gelu_of,
    "qgeglu": _quick_gelu,
    "reglu": torch.relu,
    "sreglu": _squared_relu,
    "swiglu": F.silu,
    "glu": torch.sigmoid,
}


def vector_jacobian(function: Function, grad: Tensor, at: Tensor) -> Tensor:
    """grad times the derivative of ``function``, in fp32."""
    with torch.enable_grad():
        leaf = at.detach().float().requires_grad_(True)
        (result,) = torch.autograd.grad(function(leaf), leaf, grad.float())
    return result


def _gated(function: Function) -> Function:
    """f(first half) * second half of the last axis."""

    def gated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return function(first) * second

    return gated


def _finish(values: Tensor, dtype: torch.dtype, quantizer: Any) -> Any:
    """With delayed scaling the kernel casts to FP8 itself; with current it finds the amax."""
    if is_delayed(quantizer):
        return cast_values(values, dtype, quantizer)
    amax = values.abs().max() if is_current(quantizer) and values.numel() else None
    return cast_values(values.to(dtype), dtype, quantizer, amax=amax)


def _forward(function: Function) -> Callable[..., Any]:
    def forward(input: Tensor, quantizer: Any) -> Any:
        return _finish(function(input.detach().float()), input.dtype, quantizer)

    return forward


def _backward(function: Function) -> Callable[..., Any]:
    def backward(grad: Tensor, fwd_input: Tensor, quantizer: Any) -> Any:
        return _finish(vector_jacobian(function, grad, fwd_input), grad.dtype, quantizer)

    return backward


def _backward_with_bias(function: Function) -> Callable[..., Any]:
    def backward(grad: Tensor, fwd_input: Tensor, quantizer: Any) -> list[Any]:
        values = vector_jacobian(function, grad, fwd_input)
        bias = values.reshape(-1, values.shape[-1]).sum(0).to(grad.dtype)
        return [bias, _finish(values, grad.dtype, quantizer)]

    return backward


_ALL = _POINTWISE | {name: _gated(function) for name, function in _GATED.items()}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _forward(function) for name, function in _ALL.items()},
    **{f"d{name}": _backward(function) for name, function in _ALL.items()},
    **{f"dbias_d{name}": _backward_with_bias(f) for name, f in _POINTWISE.items()},
}
"""``gelu``, ``dgelu``, ``dbias_dgelu`` and so on, by the names of the extension."""

"""Modules of Transformer Engine beside plain torch. Imported under emulation alone."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformer_engine.pytorch as te
from torch import Tensor
from torch.nn import functional as F

FP32, BF16, FP8 = 1e-6, 6e-3, 2.5e-3
"""Rounding of each, relative. FP8 results are rounded to bf16."""

ROWS, WIDTH, OUT = (16, 2), 64, 96


def relative(got: Tensor | None, wanted: Tensor | None) -> float:
    """Norm of the difference over the norm of what is wanted."""
    assert got is not None, "there is something to compare"
    assert wanted is not None, "there is something to compare with"
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def worst(differences: Iterable[float], tolerance: float) -> float:
    """NaN is the worst of all."""
    fractions = [difference / tolerance for difference in differences]
    return math.inf if any(map(math.isnan, fractions)) else max(fractions)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _layer_norm(x: Tensor, parts: dict[str, Tensor], prefix: str = "") -> Tensor:
    return F.layer_norm(x, x.shape[-1:], parts[prefix + "weight"], parts[prefix + "bias"], 1e-5)


def _rms_norm(x: Tensor, parts: dict[str, Tensor]) -> Tensor:
    return rms_norm(x, parts["layer_norm_weight"])


def _mlp(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    def forward(x: Tensor, parts: dict[str, Tensor]) -> Tensor:
        hidden = F.linear(_rms_norm(x, parts), parts["fc1_weight"], parts.get("fc1_bias"))
        return F.linear(activation(hidden), parts["fc2_weight"], parts.get("fc2_bias"))

    return forward


def _swiglu(hidden: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, -1)
    return F.silu(gate) * up


def _tanh_gelu(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")


RMS = {"normalization": "RMSNorm"}
CASES: dict[str, tuple[Callable[..., Any], Callable[[Tensor, dict[str, Tensor]], Tensor]]] = {
    "Linear": (
        lambda dtype: te.Linear(WIDTH, OUT, bias=True, params_dtype=dtype),
        lambda x, parts: F.linear(x, parts["weight"], parts["bias"]),
    ),
    "RMSNorm": (
        lambda dtype: te.RMSNorm(WIDTH, params_dtype=dtype),
        lambda x, parts: rms_norm(x, parts["weight"]),
    ),
    "LayerNorm": (lambda dtype: te.LayerNorm(WIDTH, params_dtype=dtype), _layer_norm),
    "RMSNorm and Linear": (
        lambda dtype: te.LayerNormLinear(WIDTH, OUT, bias=True, params_dtype=dtype, **RMS),
        lambda x, parts: F.linear(_rms_norm(x, parts), parts["weight"], parts["bias"]),
    ),
    "LayerNorm and Linear": (
        lambda dtype: te.LayerNormLinear(WIDTH, OUT, bias=False, params_dtype=dtype),
        lambda x, parts: F.linear(_layer_norm(x, parts, "layer_norm_"), parts["weight"]),
    ),
    "MLP with gelu": (
        lambda dtype: te.LayerNormMLP(WIDTH, 128, activation="gelu", params_dtype=dtype, **RMS),
        _mlp(_tanh_gelu),
    ),
    "MLP with swiglu": (
        lambda dtype: te.LayerNormMLP(
            WIDTH, 128, activation="swiglu", bias=False, params_dtype=dtype, **RMS
        ),
        _mlp(_swiglu),
    ),
}


def differences(case: str, dtype: torch.dtype) -> dict[str, float]:
    """Output and gradients of a module against torch's in fp32, relative."""
    torch.manual_seed(0)
    make, reference = CASES[case]
    module = make(dtype)
    with torch.no_grad():  # norms start from ones and zeros, which hide mistakes
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    parts = {name: p.detach().float().requires_grad_() for name, p in module.named_parameters()}
    inputs = torch.randn(*ROWS, WIDTH, dtype=dtype)
    x, wanted_x = inputs.clone().requires_grad_(), inputs.float().requires_grad_()
    y, wanted = module(x), reference(wanted_x, parts)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad.float())
    found = {"output": relative(y, wanted), "input": relative(x.grad, wanted_x.grad)}
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    return found | {name: relative(grads[name], part.grad) for name, part in parts.items()}

"""LayerNorm and RMSNorm, forward and backward.

Source: pytorch/csrc/extensions/normalization.cpp, common/normalization/.
"""

from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.number_formats import torch_type
from vila_mc.emulation.extension.scaling import cast_values, is_delayed


def rmsnorm_fwd(
    input: Tensor,
    weight: Tensor,
    eps: float,
    ln_out: Any,
    quantizer: Any,
    otype: Any,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> list[Any]:
    """x / rms(x) * gamma: the output, None, and 1 / rms [rows] in fp32."""
    x = input.detach().float()
    rsigma = torch.rsqrt(x.square().mean(-1) + eps)
    values = x * rsigma[..., None] * _gamma(weight, zero_centered_gamma)
    return [_finish(values, ln_out, quantizer, otype), None, rsigma.reshape(-1)]


def rmsnorm_bwd(
    dz: Tensor,
    x: Tensor,
    rsigma: Tensor,
    gamma: Tensor,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> list[Tensor]:
    """Gradients of input and weight."""
    dx, dgamma = _rmsnorm_gradients(dz, x, rsigma, gamma, zero_centered_gamma)
    return [dx.to(x.dtype), dgamma]


def rmsnorm_bwd_add(
    dz: Tensor,
    x: Tensor,
    add: Tensor,
    rsigma: Tensor,
    gamma: Tensor,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> list[Tensor]:
    """The same, with ``add`` on the gradient of the input before it is rounded."""
    dx, dgamma = _rmsnorm_gradients(dz, x, rsigma, gamma, zero_centered_gamma)
    return [(dx + add.float().view(dx.shape)).to(x.dtype), dgamma]


def layernorm_fwd(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    ln_out: Any,
    quantizer: Any,
    otype: Any,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> list[Any]:
    """(x - mean) / sigma * gamma + beta: the output, mean and 1 / sigma [rows] in fp32."""
    x = input.detach().float()
    mean = x.mean(-1)
    centred = x - mean[..., None]
    rsigma = torch.rsqrt(centred.square().mean(-1) + eps)
    values = centred * rsigma[..., None] * _gamma(weight, zero_centered_gamma)
    if bias is not None:
        values = values + bias.detach().float()
    return [_finish(values, ln_out, quantizer, otype), mean.reshape(-1), rsigma.reshape(-1)]


def layernorm_bwd(
    dz: Tensor,
    x: Tensor,
    mu: Tensor,
    rsigma: Tensor,
    gamma: Tensor,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> list[Tensor]:
    """Gradients of input, weight and bias."""
    width = x.shape[-1]
    dz_rows = dz.reshape(-1, width).float()
    normal = (x.reshape(-1, width).float() - mu[:, None]) * rsigma[:, None]
    dnormal = dz_rows * _gamma(gamma, zero_centered_gamma)
    dx = dnormal - dnormal.mean(-1, keepdim=True)
    dx = rsigma[:, None] * (dx - normal * (dnormal * normal).mean(-1, keepdim=True))
    dgamma = (dz_rows * normal).sum(0).to(gamma.dtype)
    return [dx.to(x.dtype).view(x.shape), dgamma, dz_rows.sum(0).to(gamma.dtype)]


def _rmsnorm_gradients(
    dz: Tensor, x: Tensor, rsigma: Tensor, gamma: Tensor, zero_centered_gamma: bool
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    dz_rows = dz.reshape(-1, width).float()
    normal = x.reshape(-1, width).float() * rsigma[:, None]
    dnormal = dz_rows * _gamma(gamma, zero_centered_gamma)
    dx = rsigma[:, None] * (dnormal - normal * (dnormal * normal).mean(-1, keepdim=True))
    return dx.view(x.shape), (dz_rows * normal).sum(0).to(gamma.dtype)


def _gamma(weight: Tensor, is_zero_centred: bool) -> Tensor:
    return weight.detach().float() + (1.0 if is_zero_centred else 0.0)


def _finish(values: Tensor, out: Any, quantizer: Any, otype: Any) -> Any:
    """With delayed scaling the kernel casts to FP8 itself; else it rounds to its type first."""
    dtype = torch_type(otype)
    rounded = values if is_delayed(quantizer) else values.to(dtype)
    return cast_values(rounded, dtype, quantizer, out)

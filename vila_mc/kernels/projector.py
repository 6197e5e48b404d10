"""The concat projectors as one differentiable step each, which keep their input and little else.

The gathered (and normalised) tokens are made again in the backward pass, and most of the hidden
layer. Weights may be one rank's
shard: ``fc1`` split by rows of its weight, ``fc2`` by columns. Output and gradients are then that
rank's part of sums over the ranks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vila_mc.config.connector_memory import HIDDEN_KEPT

_ROWS_IN_CACHE, _ROWS_PER_LAUNCH = 64, 1024
"""Rows of a weight gradient that are finished together: on a CPU while they are in its cache, on a
GPU so many that they take longer than launching their kernels."""


class DownsampleLinear(torch.autograd.Function):
    """``reference.downsample_linear``; keeps the features alone. ``ops`` computes the gather."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: Any,
        features_npe: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: int,
        has_cls: bool,
    ) -> Tensor:
        ctx.save_for_backward(features_npe, weight)
        ctx.ops, ctx.fold = ops, (factor, has_cls)
        return F.linear(ops.downsample_gather(features_npe, factor, has_cls), weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_nth: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        _, needs_features, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        factor, has_cls = ctx.fold
        features_grad = weight_grad = None
        grad = grad_nth.flatten(0, 1)
        if needs_weight:
            tokens = ctx.ops.downsample_gather(features, factor, has_cls)
            weight_grad = grad.t() @ tokens.flatten(0, 1)
        if needs_features:
            grid = round((features.shape[1] - has_cls) ** 0.5)
            features_grad = ctx.ops.downsample_gather_backward(
                grad_nth @ weight, grid, factor, has_cls
            )
        bias_grad = grad.sum(0) if needs_bias else None
        return None, features_grad, weight_grad, bias_grad, None, None


class MlpDownsample(torch.autograd.Function):
    """``reference.mlp_downsample``; keeps features, the norm's statistics and some hidden tokens.

    The backward pass computes the other hidden tokens again. Where the features want no gradient (a
    frozen vision tower) it saves as much: the product that would give the gradient of the norm's
    output is not needed, see ``_norm_and_fc1_grads``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ops: Any,
        features_npe: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        factor: int,
        has_cls: bool,
        eps: float,
    ) -> Tensor:
        tokens, mean, rstd = ops.downsample_layernorm(
            features_npe, norm_weight, norm_bias, factor, has_cls, eps
        )
        hidden = F.linear(tokens, fc1_weight, fc1_bias)
        kept = hidden.flatten(0, 1)[: int(HIDDEN_KEPT * hidden.shape[0] * hidden.shape[1])].clone()
        ctx.save_for_backward(
            *(features_npe, mean, rstd, norm_weight, norm_bias),
            *(fc1_weight, fc1_bias, fc2_weight, kept),
        )
        ctx.ops, ctx.fold = ops, (factor, has_cls, eps)
        return F.linear(F.gelu(hidden), fc2_weight, fc2_bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_nth: Tensor) -> tuple[Tensor | None, ...]:
        features, mean, rstd, norm_weight, norm_bias, *fc_weights, kept = ctx.saved_tensors
        fc1_weight, fc1_bias, fc2_weight = fc_weights
        factor, has_cls, eps = ctx.fold
        tokens = ctx.ops.downsample_layernorm(
            features, norm_weight, norm_bias, factor, has_cls, eps
        )[0].flatten(0, 1)
        hidden = tokens.new_empty(len(tokens), len(fc1_weight))
        hidden[: len(kept)] = kept
        torch.addmm(fc1_bias, tokens[len(kept) :], fc1_weight.t(), out=hidden[len(kept) :])
        grad = grad_nth.flatten(0, 1)
        fc2_weight_grad = grad.t() @ F.gelu(hidden)
        fc2_bias_grad = grad.sum(0) if ctx.needs_input_grad[7] else None
        hidden_grad = torch.ops.aten.gelu_backward(grad @ fc2_weight, hidden)
        fc1_bias_grad = hidden_grad.sum(0)
        if ctx.needs_input_grad[1]:
            fc1_weight_grad = hidden_grad.t() @ tokens
            tokens_grad = (hidden_grad @ fc1_weight).view(*grad_nth.shape[:2], len(norm_weight))
            features_grad, *norm_grads = ctx.ops.downsample_layernorm_backward(
                tokens_grad, features, norm_weight, mean, rstd, factor, has_cls
            )
        else:
            features_grad = None
            one, zero = torch.ones_like(norm_weight), torch.zeros_like(norm_bias)
            normal = ctx.ops.downsample_layernorm(features, one, zero, factor, has_cls, eps)[0]
            fc1_weight_grad, *norm_grads = _norm_and_fc1_grads(
                hidden_grad.t() @ normal.flatten(0, 1),
                fc1_bias_grad,
                norm_weight,
                norm_bias,
                fc1_weight,
            )
        fc1 = (fc1_weight_grad, fc1_bias_grad)
        fc2 = (fc2_weight_grad, fc2_bias_grad)
        return None, features_grad, *norm_grads, *fc1, *fc2, None, None, None


def _norm_and_fc1_grads(
    product: Tensor, fc1_bias_grad: Tensor, norm_weight: Tensor, norm_bias: Tensor, fc1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of fc1's weight and the norm's weight and bias, without that of its output.

    With z = W (g * x + c) + b, x the normalised tokens, dz the gradient of z, and both summed over
    tokens: dW = g * (dz' x) + dz c', dg = sum over W's rows of W * (dz' x), dc = dz W. One product
    gives all three.

    Args:
        product: [h, c], dz' x; overwritten by the gradient of fc1's weight.
        fc1_bias_grad: [h], dz summed over tokens.
        norm_weight: [c], g.
        norm_bias: [c], c.
        fc1: [h, c], W.
    """
    wide = torch.float64 if fc1.dtype == torch.float64 else torch.float32
    scale, shift = norm_weight.to(wide), norm_bias.to(wide)
    scale_grad, shift_grad = torch.zeros_like(scale), fc1_bias_grad @ fc1
    at_once = _ROWS_IN_CACHE if fc1.device.type == "cpu" else _ROWS_PER_LAUNCH
    for start in range(0, len(fc1), at_once):
        rows = slice(start, start + at_once)
        part = product[rows].to(wide)  # for wide formats the product itself
        scale_grad += (part * fc1[rows]).sum(0)
        part.mul_(scale).addr_(fc1_bias_grad[rows].to(wide), shift)
        if product.dtype != wide:
            product[rows] = part
    return product, scale_grad.to(norm_weight.dtype), shift_grad.to(norm_bias.dtype)

"""Softmax of scaled and masked scores, for attention that is not fused.

Source: pytorch/csrc/extensions/softmax.cpp, common/fused_softmax/.
"""

import torch
from torch import Tensor

_MASKED = -10000.0
"""Stands for a masked score; a row of nothing else comes out as zeros."""


def scaled_softmax_forward(input: Tensor, scale_factor: float) -> Tensor:
    """Of scores [b, a, s, keys]."""
    return torch.softmax(input.float() * scale_factor, -1).to(input.dtype)


def scaled_softmax_backward(
    output_grad_: Tensor, softmax_results_: Tensor, scale_factor: float
) -> Tensor:
    """Gradient of the scores."""
    return _backward(output_grad_, softmax_results_, scale_factor)


def scaled_masked_softmax_forward(input: Tensor, mask: Tensor, scale_factor: float) -> Tensor:
    """Scores [b, a, s, keys]; ``mask`` [b or 1, 1, s, keys] is 1 where they are hidden."""
    is_hidden = mask == 1
    scores = (input.float() * scale_factor).masked_fill(is_hidden, _MASKED)
    is_empty = is_hidden.all(-1, keepdim=True)
    return torch.softmax(scores, -1).masked_fill(is_empty, 0.0).to(input.dtype)


def scaled_masked_softmax_backward(
    output_grad_: Tensor, softmax_results_: Tensor, scale_factor: float
) -> Tensor:
    """Gradient of the scores."""
    return _backward(output_grad_, softmax_results_, scale_factor)


def scaled_upper_triang_masked_softmax_forward(input: Tensor, scale_factor: float) -> Tensor:
    """Causal; scores [b * a, s, s]."""
    return _causal(input, scale_factor)


def scaled_upper_triang_masked_softmax_backward(
    output_grads_: Tensor, softmax_results_: Tensor, scale_factor: float
) -> Tensor:
    """Gradient of the scores."""
    return _backward(output_grads_, softmax_results_, scale_factor)


def scaled_aligned_causal_masked_softmax_forward(input: Tensor, scale_factor: float) -> Tensor:
    """Causal; scores [b, a, s, keys], the last query sees every key."""
    return _causal(input, scale_factor)


def scaled_aligned_causal_masked_softmax_backward(
    output_grad_: Tensor, softmax_results_: Tensor, scale_factor: float
) -> Tensor:
    """Gradient of the scores."""
    return _backward(output_grad_, softmax_results_, scale_factor)


def _causal(scores: Tensor, scale_factor: float) -> Tensor:
    queries, keys = scores.shape[-2:]
    is_later = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    hidden = (scores.float() * scale_factor).masked_fill(is_later, -torch.inf)
    return torch.softmax(hidden, -1).to(scores.dtype)


def _backward(grad: Tensor, result: Tensor, scale_factor: float) -> Tensor:
    g, y = grad.float(), result.float()
    return (scale_factor * y * (g - (g * y).sum(-1, keepdim=True))).to(grad.dtype)

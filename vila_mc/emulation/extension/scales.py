"""Amaxes, their histories, and the scales that follow from them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vila_mc.emulation.extension.factors import FP32_MAX, scale_from_amax
from vila_mc.emulation.extension.number_formats import LARGEST


def compute_amax(input: Tensor, amax: Tensor) -> None:
    """Write the greatest magnitude of ``input`` into ``amax`` [1].

    Source: common/recipe/current_scaling.cu.
    """
    amax.copy_(input.abs().max().float().reshape(amax.shape))


def fused_amax_and_scale_update_after_reduction(
    amax_reduction_buffer: Tensor,
    amax_histories: Sequence[Tensor],
    scales: Sequence[Tensor],
    amax_compute_algo: str,
    fp8_dtype: Any,
    margin: float,
) -> None:
    """Delayed scaling: take the reduced amaxes into the histories and renew the scales.

    Source: common/recipe/delayed_scaling.cu, kernel_bulk.

    Args:
        amax_reduction_buffer: the latest amaxes of all tensors, one after the other.
        amax_histories: [length, tensors] each; row 0 is being filled, the rest is the past.
        scales: [tensors] each; kept where the amax is zero or not finite.
    """
    if amax_compute_algo not in ("max", "most_recent"):
        raise RuntimeError(f"Unsupported amax compute algorithm ({amax_compute_algo})")
    largest = LARGEST[int(fp8_dtype)] * 2.0**-margin
    reduced = torch.split(amax_reduction_buffer, [history.shape[1] for history in amax_histories])
    for history, scale, latest in zip(amax_histories, scales, reduced, strict=True):
        latest = torch.where(latest != 0, latest, history[0])
        has_news = latest != 0
        rolled = torch.cat([history[1:], latest[None]])
        if amax_compute_algo == "max":
            # As on the GPU, what is not a number is skipped.
            greatest = torch.where(rolled.isnan(), 0.0, rolled).amax(0)
            amax = torch.where(has_news, greatest, 0.0)
        else:
            amax = latest
        rolled[0] = 0
        history.copy_(torch.where(has_news, rolled, history))
        new = (largest / amax).clamp(max=FP32_MAX)
        scale.copy_(torch.where((amax > 0) & amax.isfinite(), new, scale))


def multi_tensor_compute_scale_and_scale_inv(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    max_fp8: float,
    force_pow_2_scales: bool,
    epsilon: float,
) -> None:
    """Fill scales and their inverses from amaxes: ``tensor_lists`` is [amaxes, scales, inverses].

    Source: common/multi_tensor/compute_scale.cu.
    """
    for amax, scale, scale_inv in zip(*tensor_lists, strict=True):
        scale.copy_(
            scale_from_amax(amax, max_fp8, epsilon=epsilon, is_power_of_two=force_pow_2_scales)
        )
        scale_inv.copy_(1.0 / scale)

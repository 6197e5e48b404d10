"""From the greatest magnitude of a tensor (amax) to the factor that uses the range of FP8."""

import math

import torch
from torch import Tensor

FP32_MAX = torch.finfo(torch.float32).max


def scale_from_amax(
    amax: Tensor,
    largest: float,
    *,
    epsilon: float = 0.0,
    is_power_of_two: bool = False,
    for_infinity: float = FP32_MAX,
) -> Tensor:
    """Scales of amaxes: largest / amax; 1 where an amax is zero or not finite.

    Source: common/recipe/recipe_common.cuh, compute_scale_from_amax.

    Args:
        largest: the largest number of the FP8 format.
        epsilon: amaxes below it count as it.
        is_power_of_two: drop the mantissa of the scale.
        for_infinity: the scale where the quotient overflows fp32.
    """
    amax = torch.where(amax < epsilon, epsilon, amax.float())
    scale = largest / amax
    scale = torch.where(scale.isinf(), for_infinity, scale)
    if is_power_of_two:
        scale = (scale.view(torch.int32) & 0x7F800000).view(torch.float32)
    return torch.where((amax == 0) | ~amax.isfinite(), 1.0, scale)


def ceil_div(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``."""
    return math.ceil(count / size)


def round_up(count: int, size: int) -> int:
    """The next multiple of ``size``."""
    return ceil_div(count, size) * size

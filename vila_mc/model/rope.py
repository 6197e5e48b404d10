"""Rotary frequencies of a language model, stretched or not."""

import math

import torch
from torch import Tensor

from vila_mc.config.model import LanguageConfig


def inverse_frequencies(language: LanguageConfig) -> Tensor:
    """Radians per position of each pair of channels: [d / 2] fp32, on the CPU.

    Source:
        RoFormer, arXiv 2104.09864, section 3.4.2; linear: position interpolation, arXiv 2306.15595;
        llama3: the released code of Llama 3.1, which leaves waves shorter than
        original / high_frequency_factor alone, divides those longer than
        original / low_frequency_factor, and mixes between.
    """
    rope, width = language.rope, language.resolved_head_width()
    # On the CPU whatever torch's default device is: a model built without memory needs them too.
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    frequencies = 1.0 / language.rope_theta**exponents
    if rope.scaling == "none":
        return frequencies
    stretched = frequencies / rope.factor
    if rope.scaling == "linear":
        return stretched
    wavelengths = 2 * math.pi / frequencies
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    share = (rope.original_positions / wavelengths - low) / (high - low)
    share = share.clamp(0.0, 1.0)  # 0: divided, 1: left alone
    return (1 - share) * stretched + share * frequencies

"""Types of numbers by the integers of the C interface, and the casts into eight bits.

Source: common/include/transformer_engine/transformer_engine.h (NVTEDType), common/util/ptx.cuh.
"""

from typing import Any

import torch
from torch import Tensor

E4M3, E5M2 = 7, 8
"""Values of ``DType`` for the two FP8 formats."""

TORCH_TYPE = {
    0: torch.uint8,
    2: torch.int32,
    4: torch.float32,
    5: torch.float16,
    6: torch.bfloat16,
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
}
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
NOT_A_NUMBER = 0x7F
"""A byte that is no number in either format."""
_LARGEST_BIASED_EXPONENT = 0xFE


def torch_type(dtype: Any) -> torch.dtype:
    """The torch type of a ``DType`` of Transformer Engine, or of itself."""
    return dtype if isinstance(dtype, torch.dtype) else TORCH_TYPE[int(dtype)]


def to_fp8_bytes(scaled: Tensor, dtype: Any) -> Tensor:
    """Saturating cast, as the bytes in which Transformer Engine keeps FP8 data.

    Infinities saturate as well; what is not a number stays so.
    """
    limit = LARGEST[int(dtype)]
    return scaled.float().clamp(-limit, limit).to(TORCH_TYPE[int(dtype)]).view(torch.uint8)


def from_fp8_bytes(data: Tensor, dtype: Any) -> Tensor:
    """The numbers that FP8 bytes stand for, in fp32."""
    return data.view(TORCH_TYPE[int(dtype)]).float()


def to_exponents(values: Tensor) -> Tensor:
    """E8M0: the biased exponents of the powers of two at or above positive values, as bytes.

    Source: common/util/ptx_arch_spec.cuh, float_to_e8m0.
    """
    bits = values.float().contiguous().view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    is_rounded_up = (mantissa > 0) & (exponent != _LARGEST_BIASED_EXPONENT)
    is_rounded_up &= ~((exponent == 0) & (mantissa <= 0x400000))
    exponent = (exponent + is_rounded_up).clamp(max=_LARGEST_BIASED_EXPONENT)
    exponent = torch.where(values.isnan(), 0xFF, exponent)
    return exponent.to(torch.uint8)


def power_of_two(exponents: Tensor) -> Tensor:
    """2 to the power of E8M0 exponents, in fp32.

    Source: common/util/ptx.cuh, exp2f.
    """
    bits = exponents.int() << 23
    bits = torch.where(exponents == 0, 0x00400000, bits)  # 2^-127 is subnormal
    bits = torch.where(exponents == 0xFF, 0x7FFFFFFF, bits)
    return bits.int().view(torch.float32)

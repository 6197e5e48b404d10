"""Which GPU is emulated."""

A100, H100, B200 = (8, 0), (9, 0), (10, 0)
CAPABILITIES = {A100: "A100", H100: "H100", B200: "B200"}
"""Compute capabilities that can be emulated."""

_emulated = H100


def emulate(capability: tuple[int, int]) -> None:
    """Choose the GPU; once, before Transformer Engine is imported."""
    global _emulated
    _emulated = capability


def emulated_capability() -> tuple[int, int]:
    """Of the emulated GPU."""
    return _emulated


def multiplies_fp8_in_any_layout() -> bool:
    """Whether FP8 operands need no transposed copy, as on Blackwell.

    Source: common/transformer_engine.cpp, nvte_is_non_tn_fp8_gemm_supported.
    """
    return (10, 0) <= _emulated < (12, 0)

"""Without FP8, modules of Transformer Engine compute what torch does."""

import pytest
import torch

from tests.support.emulated import Emulated

CASES = (
    "Linear",
    "RMSNorm",
    "LayerNorm",
    "RMSNorm and Linear",
    "LayerNorm and Linear",
    "MLP with gelu",
    "MLP with swiglu",
)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 6e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_module_computes_what_torch_does(case: str, dtype: torch.dtype, h100: Emulated) -> None:
    for name, difference in h100("tests.te.modules:differences", case, dtype).items():
        assert difference < TOLERANCE[dtype], name

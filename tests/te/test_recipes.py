"""FP8 by each recipe equals a reference that quantizes by itself, up to the rounding to bf16."""

import pytest

from tests.support.emulated import Emulated

BF16_ROUNDING = 2.5e-3
"""Of the result, relative; a cast that differs by one unit in every hundredth value is 3e-3."""
ON_HOPPER = ("delayed", "current", "blockwise")


@pytest.mark.parametrize("recipe", [*ON_HOPPER, "delayed, most recent"])
def test_a_linear_in_fp8_is_a_product_of_dequantized_matrices(recipe: str, h100: Emulated) -> None:
    for step, found in enumerate(h100("tests.te.recipes:linear_differences", recipe)):
        for part, difference in found.items():
            assert difference < BF16_ROUNDING, (step, part)


def test_mxfp8_on_a_blackwell(b200: Emulated) -> None:
    for step, found in enumerate(b200("tests.te.recipes:linear_differences", "mxfp8")):
        for part, difference in found.items():
            assert difference < BF16_ROUNDING, (step, part)


@pytest.mark.parametrize("recipe", ON_HOPPER)
def test_a_norm_quantizes_as_its_kernel_does(recipe: str, h100: Emulated) -> None:
    found = h100("tests.te.recipes:fused_differences", recipe)
    assert found["output"] < BF16_ROUNDING

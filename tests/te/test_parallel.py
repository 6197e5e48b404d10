"""FP8 among tensor-parallel ranks: amaxes are reduced, FP8 bytes are gathered."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.emulated import Emulated

BF16 = 6e-3
"""Partial sums of two ranks are rounded to bf16 before they are added."""


def relative(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


# Under current scaling ranks have scales of their own for what is not gathered, as on GPUs.
@pytest.mark.parametrize("recipe", ["delayed", "blockwise"])
def test_two_ranks_compute_what_one_does(recipe: str, h100: Emulated) -> None:
    (one,) = h100.ranks(1, "tests.te.parallel:two_linears", recipe)
    for rank in h100.ranks(2, "tests.te.parallel:two_linears", recipe):
        for name, wanted in one.items():
            assert relative(rank[name], wanted) < BF16, name


def test_current_scaling_reduces_amaxes_of_what_is_gathered(h100: Emulated) -> None:
    for of_a_part, of_the_whole in h100.ranks(2, "tests.te.parallel:reduced_scale"):
        assert of_a_part == of_the_whole

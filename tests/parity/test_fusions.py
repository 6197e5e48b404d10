"""What is fused computes what is not."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity import fused_trace
from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import TRAINABLES, Trace
from tests.support.ranks import run_ranks

PLAIN = dict(bias_activation_fusion=False, cross_entropy_loss_fusion=False)
CROSS_ENTROPY = dict(cross_entropy_loss_fusion=False)
BF16 = {"precision": "bf16"}
TP2_SP = dict(tensor=2, sequence=True)


def test_a_fused_swiglu_has_the_bits_of_a_plain_one(
    seed_checkpoint: Path, single_rank: dict[str, Trace]
) -> None:
    (plain,) = run_ranks(1, fused_trace.traces, seed_checkpoint, {}, PLAIN, {})
    for trace, name in zip(plain, TRAINABLES, strict=True):
        assert trace == single_rank[name], name


def test_a_fused_swiglu_keeps_its_input_alone() -> None:
    (plain,), (fused,) = (run_ranks(1, fused_trace.kept_bytes, is_on) for is_on in (False, True))
    # The gate after its activation, and a copy of the other half: 8 tokens of 96 numbers each.
    assert plain - fused == 2 * 8 * 96 * 4


def test_a_fused_cross_entropy_has_the_bits_of_a_plain_one(seed_checkpoint: Path) -> None:
    """In bf16, where it is on: it rounds gradients to that."""
    fused, plain = (
        run_ranks(2, fused_trace.traces, seed_checkpoint, TP2_SP, changed, BF16)
        for changed in ({}, CROSS_ENTROPY)
    )
    assert fused == plain


@pytest.mark.parametrize("parallel", [TP2_SP, dict(overlap_grad_reduce=True)], ids=str)
def test_gradients_that_a_kernel_adds_up_teach_the_same(
    parallel: dict[str, Any], seed_checkpoint: Path, single_rank: dict[str, Trace]
) -> None:
    """NVIDIA Apex's kernel is played by two lines of torch."""
    by_rank = run_ranks(2, fused_trace.traces_with_kernel, seed_checkpoint, parallel, {})
    for index, name in enumerate(TRAINABLES):
        traces = [traces[index] for traces, _ in by_rank]
        assert_every_rank_matches(traces, single_rank[name], name)
    assert all(calls > 0 for _, calls in by_rank)

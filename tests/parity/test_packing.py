"""Packed samples do not see each other: they teach what they teach in rows of their own."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import Trace
from tests.parity.packed_trace import gradients_of_samples, trace_of_samples
from tests.support.ranks import run_ranks
from vila_mc.model.attention import TorchAttention

LAYOUTS = {
    "one rank": (1, dict()),
    "tp2": (2, dict(tensor=2)),
    "tp2-sp": (2, dict(tensor=2, sequence=True)),
    "dp2": (2, dict()),
    "pp2": (2, dict(pipeline=2)),
    "pp2-dedicated": (2, dict(pipeline=2, vision_placement="dedicated")),
    "pp2-virtual2": (2, dict(pipeline=2, virtual=2)),
}


@pytest.fixture(scope="module")
def separate(seed_checkpoint: Path) -> Trace:
    """The trace of one rank with every sample in a row of its own."""
    (trace,) = run_ranks(1, trace_of_samples, seed_checkpoint, {}, False)
    return trace


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_samples_teach_what_separate_ones_do(
    layout: str, seed_checkpoint: Path, separate: Trace
) -> None:
    world_size, parallel = LAYOUTS[layout]
    traces = run_ranks(world_size, trace_of_samples, seed_checkpoint, parallel, True)
    assert_every_rank_matches(traces, separate, layout)


def test_every_gradient_is_that_of_the_separate_samples(seed_checkpoint: Path) -> None:
    (packed,) = run_ranks(1, gradients_of_samples, seed_checkpoint, True)
    (separate,) = run_ranks(1, gradients_of_samples, seed_checkpoint, False)
    assert packed.keys() == separate.keys()
    for name, gradient in separate.items():
        scale = abs(gradient).max()
        assert scale > 0, name
        assert abs(packed[name] - gradient).max() < 1e-5 * scale, name


def test_attention_across_samples_would_be_caught(seed_checkpoint: Path, separate: Trace) -> None:
    (trace,) = run_ranks(1, _trace_without_boundaries, seed_checkpoint)
    with pytest.raises(AssertionError):
        assert_every_rank_matches([trace], separate)


def _trace_without_boundaries(seed_checkpoint: Path) -> Trace:
    def whole_row(
        self: TorchAttention, inputs_basd: Any, is_causal: Any, sample_lengths: Any
    ) -> Any:
        return self._attend(inputs_basd, is_causal)

    TorchAttention._attend_packed = whole_row
    return trace_of_samples(seed_checkpoint, {}, True)

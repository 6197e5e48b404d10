"""Layers of Transformer Engine train as torch's do, packed or not, at every layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import NUM_STEPS, Trace, seed_and_trace, trace
from tests.parity.packed_trace import trace_of_samples
from tests.support.emulated import Emulated
from tests.support.ranks import run_ranks
from tests.support.tiny import GLOBAL_BATCH, QWEN3

RANKS = "tests.te.trained"
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one rank": (1, dict(), dict()),
    "recompute": (1, dict(), dict(recompute="full")),
    "tp2": (2, dict(tensor=2), dict()),
    "tp2-sp": (2, dict(tensor=2, sequence=True), dict()),
    "dp2-overlap": (2, dict(overlap_grad_reduce=True), dict()),
    "pp2-virtual2": (2, dict(pipeline=2, virtual=2), dict()),
    "tp2-pp2-sp": (4, dict(tensor=2, pipeline=2, sequence=True), dict()),
}


@pytest.fixture(scope="module")
def separate(seed_checkpoint: Path) -> Trace:
    """One rank with torch's layers, no Transformer Engine, and every sample in a row of its own."""
    (trace,) = run_ranks(1, trace_of_samples, seed_checkpoint, {}, False)
    return trace


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_samples_teach_what_separate_ones_do_with_torch(
    layout: str, seed_checkpoint: Path, separate: Trace, h100: Emulated
) -> None:
    world_size, parallel, train = LAYOUTS[layout]
    traces = h100.ranks(world_size, f"{RANKS}:packed", seed_checkpoint, parallel, **train)
    assert_every_rank_matches(traces, separate, layout)


def test_norms_of_queries_and_keys_learn_as_torchs_do(tmp_path: Path, h100: Emulated) -> None:
    (expected,) = run_ranks(1, seed_and_trace, tmp_path, QWEN3)
    train = dict(layers="transformer_engine")
    by_rank = h100.ranks(
        2, "tests.parity.layout_trace:trace", tmp_path, dict(tensor=2), train=train, model=QWEN3
    )
    assert_every_rank_matches([traces[0] for traces in by_rank], expected)


def test_single_layers_learn_as_torchs_do(seed_checkpoint: Path, h100: Emulated) -> None:
    """Of two stages, with recomputation; the first has nothing to learn in the second case."""
    cases = [("vision.layers[-1:]", "language.layers[::2]"), ("language.layers[2:]",)]
    (expected,) = run_ranks(1, trace, seed_checkpoint, {}, cases)
    train = dict(layers="transformer_engine", recompute="full")
    call = ("tests.parity.layout_trace:trace", seed_checkpoint, dict(pipeline=2), cases, train)
    by_rank = h100.ranks(2, *call)
    for case, names in enumerate(cases):
        assert_every_rank_matches([traces[case] for traces in by_rank], expected[case], str(names))


def test_its_own_attention_would_let_samples_see_each_other(
    seed_checkpoint: Path, separate: Trace, h100: Emulated
) -> None:
    trace = h100(f"{RANKS}:packed_with_its_own_attention", seed_checkpoint)
    with pytest.raises(AssertionError):
        assert_every_rank_matches([trace], separate)


@pytest.mark.parametrize(
    ("train", "language", "vision"),
    [
        (dict(), "ColumnParallelLinear", "ColumnParallelLinear"),
        (dict(layers="torch"), "ColumnParallelLinear", "ColumnParallelLinear"),
        (dict(layers="transformer_engine"), *["TELayerNormColumnParallelLinear"] * 2),
        (
            dict(layers="transformer_engine", vision_layers="torch"),
            "TELayerNormColumnParallelLinear",
            "ColumnParallelLinear",
        ),
        (
            dict(layers="torch", vision_layers="transformer_engine"),
            "ColumnParallelLinear",
            "TELayerNormColumnParallelLinear",
        ),
    ],
    ids=str,
)
def test_each_part_is_made_of_what_was_asked(
    train: dict[str, Any], language: str, vision: str, h100: Emulated
) -> None:
    norm = "transformer_engine" if language.startswith("TE") else "torch"
    kinds = h100(f"{RANKS}:kinds_of_modules", train)
    assert kinds == {"language": language, "final norm": norm, "vision": vision}


def test_gradients_that_a_kernel_adds_up_teach_the_same(
    seed_checkpoint: Path, h100: Emulated
) -> None:
    """Transformer Engine adds up its own; the output layer wants NVIDIA Apex's kernel, played."""
    layers = {"layers": "transformer_engine"}
    (wanted,) = h100.ranks(1, "tests.parity.fused_trace:traces", seed_checkpoint, {}, {}, layers)
    parallel = dict(tensor=2, sequence=True)
    function = "tests.parity.fused_trace:traces_with_kernel"
    by_rank = h100.ranks(2, function, seed_checkpoint, parallel, layers)
    for index, expected in enumerate(wanted):
        assert_every_rank_matches([traces[index] for traces, _ in by_rank], expected)
    assert [calls for _, calls in by_rank] == [NUM_STEPS * GLOBAL_BATCH] * 2

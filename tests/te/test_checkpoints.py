"""A checkpoint does not know what the layers of the run that wrote it were made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import NUM_STEPS, Trace
from tests.support.emulated import Emulated
from tests.support.ranks import run_ranks
from tests.te import trained
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream import open_checkpoint

RANKS = "tests.te.trained"
TORCH, TE = {"layers": "torch"}, {"layers": "transformer_engine"}
STOP_AFTER = 2
Layout = tuple[int, dict[str, Any]]
ONE: Layout = (1, dict())
TP2_SP: Layout = (2, dict(tensor=2, sequence=True))
PP2_VIRTUAL2: Layout = (2, dict(pipeline=2, virtual=2))
DP2: Layout = (2, dict())


@pytest.fixture(scope="module")
def unbroken(seed_checkpoint: Path, h100: Emulated) -> Trace:
    """One rank with torch's layers that never stopped."""
    trace: Trace = h100(f"{RANKS}:unbroken", seed_checkpoint, {}, TORCH)
    return trace


@pytest.mark.parametrize(
    ("before", "after", "first", "second"),
    [(TORCH, TE, DP2, TP2_SP), (TE, TORCH, TP2_SP, PP2_VIRTUAL2), (TE, TE, PP2_VIRTUAL2, ONE)],
    ids=["torch to TE", "TE to torch", "TE to TE"],
)
def test_a_run_goes_on_with_other_layers_at_another_layout(
    before: dict[str, str],
    after: dict[str, str],
    first: Layout,
    second: Layout,
    seed_checkpoint: Path,
    unbroken: Trace,
    h100: Emulated,
    tmp_path: Path,
) -> None:
    ranks, parallel = first
    arguments = (tmp_path, seed_checkpoint, parallel, before, STOP_AFTER)
    traces = h100.ranks(ranks, f"{RANKS}:begin", *arguments)
    assert_every_rank_matches(traces, unbroken[:STOP_AFTER], "before")
    ranks, parallel = second
    arguments = (tmp_path, seed_checkpoint, parallel, after, NUM_STEPS - STOP_AFTER)
    traces = h100.ranks(ranks, f"{RANKS}:go_on", *arguments)
    assert_every_rank_matches(traces, unbroken[STOP_AFTER:], "after")


def test_moments_of_our_adamw_go_on_in_fused_adam_and_back(
    seed_checkpoint: Path, unbroken: Trace, h100: Emulated, tmp_path: Path
) -> None:
    """Without Transformer Engine there is only ours; with it, torch's layers have FusedAdam."""
    (first,) = run_ranks(1, trained.begin, tmp_path, seed_checkpoint, {}, TORCH, STOP_AFTER)
    assert_every_rank_matches([first], unbroken[:STOP_AFTER], "ours")
    h100(f"{RANKS}:carry", tmp_path, tmp_path / "te", {}, TE)
    steps = NUM_STEPS - STOP_AFTER
    second = h100(f"{RANKS}:go_on", tmp_path, seed_checkpoint, {}, TE, steps)
    assert_every_rank_matches([second], unbroken[STOP_AFTER:], "FusedAdam")
    (back,) = run_ranks(1, trained.go_on, tmp_path / "te", seed_checkpoint, {}, TORCH, steps)
    assert_every_rank_matches([back], unbroken[STOP_AFTER:], "ours again")


def test_the_same_layers_and_layout_go_on_bit_for_bit(
    seed_checkpoint: Path, h100: Emulated, tmp_path: Path
) -> None:
    ranks, parallel = TP2_SP
    whole = h100.ranks(ranks, f"{RANKS}:unbroken", seed_checkpoint, parallel, TE)
    arguments = (tmp_path, seed_checkpoint, parallel, TE)
    first = h100.ranks(ranks, f"{RANKS}:begin", *arguments, STOP_AFTER)
    second = h100.ranks(ranks, f"{RANKS}:go_on", *arguments, NUM_STEPS - STOP_AFTER)
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == whole


def test_what_is_kept_is_the_same_bit_for_bit(
    seed_checkpoint: Path, h100: Emulated, tmp_path: Path
) -> None:
    """There and back: torch's layers wrote it, Transformer Engine's carried it, torch's again."""
    h100(f"{RANKS}:begin", tmp_path / "torch", seed_checkpoint, {}, TORCH, STOP_AFTER)
    ranks, parallel = TP2_SP
    arguments = (tmp_path / "torch", tmp_path / "te", parallel, TE)
    h100.ranks(ranks, f"{RANKS}:carry", *arguments)
    h100(f"{RANKS}:carry", tmp_path / "te", tmp_path / "back", {}, TORCH)
    written = h100(f"{RANKS}:tensors_in", tmp_path / "torch")
    assert sum(name.startswith("optimizer.state.exp_avg.") for name in written) > 20
    for kind in ("te", "back"):
        read = h100(f"{RANKS}:tensors_in", tmp_path / kind)
        assert read.keys() == written.keys()
        for name, values in written.items():
            assert np.array_equal(read[name], values), (kind, name)
    _assert_conversions_read(tmp_path / "te", tmp_path / "torch")


def _assert_conversions_read(one: Path, other: Path) -> None:
    """What every export reads, by the names it knows."""
    models = []
    for path in (one, other):
        directory = resolve_checkpoint(path)
        tensors = open_checkpoint(directory, Manifest.read(directory).config.model)
        models.append({name: tensor.read().numpy() for name, tensor in tensors.items()})
    assert models[0].keys() == models[1].keys()
    for name, values in models[0].items():
        assert np.array_equal(values, models[1][name]), name


def test_weights_of_an_import_arrive_in_either_kind(seed_checkpoint: Path, h100: Emulated) -> None:
    """The seed is named as an import names it; see test_shapes.py."""
    torch_names = h100(f"{RANKS}:weights_in_stage", seed_checkpoint, TORCH)
    te_names = h100(f"{RANKS}:weights_in_stage", seed_checkpoint, TE)
    assert len(torch_names) == len(te_names)
    for name, values in torch_names.items():
        fused = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        fused = fused.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        assert np.array_equal(values, te_names[fused]), name

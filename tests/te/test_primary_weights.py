"""Weights that are kept in FP8 are their fp32 masters: no loss and no checkpoint differs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.emulated import Emulated

PRIMARY = "tests.te.primary"
BOTH = ["vision", "language"]
NEAR_BF16 = 1e-3
OTHER_SUMS = 1e-6
"""Norms add up buffers, of which weights in FP8 have one of their own."""
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "delayed": (1, {}, dict(recipe="delayed", amax_history=16)),
    "current": (2, dict(overlap_grad_reduce=True), dict(recipe="current", parts=BOTH)),
    "blockwise": (2, dict(tensor=2, sequence=True), dict(recipe="blockwise", last_layers_bf16=1)),
    "mxfp8": (2, {}, dict(recipe="mxfp8", format="e4m3")),
}
PER_LAYER = 4
SAVES = ("plain", "primary")
FP8_LAYERS = {"delayed": 4, "current": 4 + 2, "blockwise": 3, "mxfp8": 4}


@pytest.mark.parametrize("recipe", CASES)
def test_weights_in_fp8_change_no_loss_and_no_checkpoint(
    recipe: str, seed_checkpoint: Path, h100: Emulated, b200: Emulated, tmp_path: Path
) -> None:
    num_ranks, parallel, options = CASES[recipe]
    gpu = b200 if recipe == "mxfp8" else h100
    arguments = (seed_checkpoint, tmp_path, parallel, options)
    for told in gpu.ranks(num_ranks, f"{PRIMARY}:story", *arguments):
        assert told["num_primary"] == FP8_LAYERS[recipe] * PER_LAYER
        assert told["wrong_masters"] == []
        _assert_same(told["primary"], told["plain"])
        assert told["primary_again"] == told["primary"][1:], "not bit for bit"
        _assert_same(told["primary_from_plain"], told["plain"][1:])
        _assert_same(told["plain_from_primary"], told["plain"][1:])
        losses = [loss for loss, _ in told["bf16_from_primary"]]
        assert losses == pytest.approx([loss for loss, _ in told["plain"][1:]], rel=NEAR_BF16)
        assert told["notices_infinity"]
    plain, primary = (h100("tests.te.trained:tensors_in", tmp_path / n) for n in SAVES)
    assert plain.keys() == primary.keys()
    pairs = h100(f"{PRIMARY}:weights_and_masters", primary)
    assert len(pairs) > 20
    for name, weight, master in pairs:
        assert np.array_equal(weight, master), name


def test_what_is_frozen_has_no_masters_and_stays_in_bf16(h100: Emulated) -> None:
    fp8 = dict(recipe="current", parts=BOTH, first_layers_bf16=1, primary_weights=True)
    train = {"fp8": fp8, "trainable": ["connector", "language.layers[:2]"]}
    kept = h100(f"{PRIMARY}:kept_in_fp8", train)
    assert len(kept) == PER_LAYER
    assert all(name.startswith("language.decoder.layers.1.") for name in kept)


def _assert_same(trace: list[tuple[float, float]], wanted: list[tuple[float, float]]) -> None:
    for got, right in zip(trace, wanted, strict=True):
        assert got == pytest.approx(right, rel=OTHER_SUMS)

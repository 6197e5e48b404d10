"""Training in FP8: near bf16, the same at every layout, and exact over a stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import NUM_STEPS, Trace
from tests.support.emulated import Emulated
from tests.support.recipe_smoke import config_of, words_of_smoke
from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import Manifest

IN_FP8, RANKS = "tests.te.in_fp8", "tests.te.trained"
BOTH = ["vision", "language"]
STOP_AFTER = 2
NEAR_BF16 = 1e-3
"""Relative, of the loss of five steps; 4e-4 is what was seen."""
DELAYED = {"recipe": "delayed", "amax_history": 16}
UPPER = ["language.layers[2:]"]
"""What learns above frozen layers."""


@pytest.fixture(scope="module")
def bf16(seed_checkpoint: Path, h100: Emulated) -> Trace:
    """The same layers without FP8."""
    trace: Trace = h100(f"{IN_FP8}:train", seed_checkpoint, {}, {})
    return trace


@pytest.fixture(scope="module")
def delayed(seed_checkpoint: Path, h100: Emulated) -> Trace:
    """The delayed recipe on one rank, without a stop."""
    trace: Trace = h100(f"{IN_FP8}:train", seed_checkpoint, {}, DELAYED)
    return trace


def _losses(trace: Trace) -> list[float]:
    return [loss for loss, _ in trace]


@pytest.mark.parametrize(
    "options",
    [
        dict(DELAYED, amax_algorithm="most_recent", margin=1),
        dict(recipe="current", parts=BOTH),
        dict(recipe="current", format="e4m3", first_layers_bf16=1, last_layers_bf16=1),
        dict(recipe="blockwise", format="e4m3", parts=BOTH),
    ],
    ids=str,
)
def test_a_recipe_trains_near_bf16(
    options: dict[str, Any], seed_checkpoint: Path, bf16: Trace, h100: Emulated
) -> None:
    trace = h100(f"{IN_FP8}:train", seed_checkpoint, {}, options)
    assert trace != bf16, "nothing was computed in FP8"
    assert _losses(trace) == pytest.approx(_losses(bf16), rel=NEAR_BF16)


def test_mxfp8_trains_near_bf16_on_blackwell(
    seed_checkpoint: Path, bf16: Trace, b200: Emulated
) -> None:
    trace = b200(f"{IN_FP8}:train", seed_checkpoint, {}, dict(recipe="mxfp8", format="e4m3"))
    assert trace != bf16, "nothing was computed in FP8"
    assert _losses(trace) == pytest.approx(_losses(bf16), rel=NEAR_BF16)


def test_recompute_changes_nothing(seed_checkpoint: Path, delayed: Trace, h100: Emulated) -> None:
    trace = h100(f"{IN_FP8}:train", seed_checkpoint, {}, DELAYED, recompute="full")
    assert trace == delayed


def test_recompute_above_frozen_layers_changes_nothing(
    seed_checkpoint: Path, h100: Emulated
) -> None:
    plain, recomputed = (
        h100(f"{IN_FP8}:train", seed_checkpoint, {}, DELAYED, recompute=recompute, trainable=UPPER)
        for recompute in ("none", "full")
    )
    assert recomputed == plain


def test_stages_change_nothing(seed_checkpoint: Path, delayed: Trace, h100: Emulated) -> None:
    parallel = dict(pipeline=2, virtual=2)
    traces = h100.ranks(2, f"{IN_FP8}:train", seed_checkpoint, parallel, DELAYED)
    assert_every_rank_matches(traces, delayed)


def test_tensor_parallel_ranks_scale_as_one(
    seed_checkpoint: Path, delayed: Trace, h100: Emulated
) -> None:
    parallel = dict(tensor=2, sequence=True)
    traces = h100.ranks(2, f"{IN_FP8}:train", seed_checkpoint, parallel, DELAYED)
    assert traces[0] == traces[1]
    assert _losses(traces[0]) == pytest.approx(_losses(delayed), rel=3e-4)


def test_ranks_without_images_do_not_wait_for_those_with_them(
    seed_checkpoint: Path, bf16: Trace, h100: Emulated
) -> None:
    """The second of two data-parallel ranks reads text alone."""
    options = dict(recipe="current", parts=BOTH)
    one, other = h100.ranks(2, f"{IN_FP8}:train", seed_checkpoint, {}, options)
    assert one == other
    assert _losses(one) == pytest.approx(_losses(bf16), rel=NEAR_BF16)


def test_the_delayed_recipe_goes_on_bit_for_bit(
    seed_checkpoint: Path, h100: Emulated, tmp_path: Path
) -> None:
    parallel = dict(pipeline=2)
    train = {"layers": "transformer_engine", "precision": "bf16", "fp8": DELAYED}
    whole = h100.ranks(2, f"{RANKS}:unbroken", seed_checkpoint, parallel, train)
    arguments = (tmp_path / "a", seed_checkpoint, parallel, train)
    first = h100.ranks(2, f"{RANKS}:begin", *arguments, STOP_AFTER)
    second = h100.ranks(2, f"{RANKS}:go_on", *arguments, NUM_STEPS - STOP_AFTER)
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == whole

    # Nor does another layout forget anything.
    h100.ranks(2, f"{RANKS}:carry", tmp_path / "a", tmp_path / "b", dict(tensor=2), train)
    written, carried = (h100(f"{RANKS}:tensors_in", tmp_path / name) for name in "ab")
    scales = [name for name in written if name.startswith("fp8.")]
    assert len(scales) == 4 * 4, "scale and history, forward and backward, of four layers' kinds"
    for name in scales:
        assert written[name].any(), name
        assert np.array_equal(written[name], carried[name]), name

    # A run of another recipe goes on from it, too, and begins its own history.
    others = {**train, "fp8": dict(DELAYED, amax_history=4)}
    trace = h100(f"{RANKS}:go_on", tmp_path / "a", seed_checkpoint, {}, others, 1)
    assert trace[0][0] == pytest.approx(whole[1][STOP_AFTER][0], rel=NEAR_BF16)


def test_validation_leaves_no_trace(seed_checkpoint: Path, delayed: Trace, h100: Emulated) -> None:
    arguments = (f"{IN_FP8}:steps_and_scales", seed_checkpoint, DELAYED)
    (trace, scales), (expected, expected_scales) = (h100(*arguments, on) for on in (True, False))
    assert trace == expected == delayed
    for got, wanted in zip(scales, expected_scales, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("part", BOTH)
def test_validation_sees_weights_of_now(part: str, seed_checkpoint: Path, h100: Emulated) -> None:
    """Layers keep FP8 copies of their weights from microbatch to microbatch."""
    options = dict(recipe="current", parts=[part])
    before, changed, back = h100(f"{IN_FP8}:losses_around_a_change", seed_checkpoint, options)
    assert abs(changed - before) > 1e-5 * before
    assert back == before


@pytest.mark.parametrize("recipe", ["current", "blockwise"])
def test_padded_tokens_change_nothing(recipe: str, seed_checkpoint: Path, h100: Emulated) -> None:
    """Of 16 images, which could do without."""
    options = dict(recipe=recipe, parts=BOTH)
    padded, plain = h100(f"{IN_FP8}:padded_and_not", seed_checkpoint, options)
    assert np.array_equal(padded["features"], plain["features"])
    for name, gradient in plain.items():
        difference = np.linalg.norm(padded[name] - gradient)
        # Blocks of a weight's gradient are other 128 tokens.
        allowed = 0.1 if recipe == "blockwise" else 1e-2
        assert difference <= allowed * np.linalg.norm(gradient), name


@pytest.mark.parametrize(
    ("recipe", "capability", "said"),
    [
        ("delayed", (8, 0), "needs a GPU of compute capability 8.9, and this one has 8.0. Set it"),
        ("blockwise", (8, 9), "9.0, and this one has 8.9. Choose of delayed, current, or none"),
        ("mxfp8", (9, 0), "10.0, and this one has 9.0. Choose of delayed, current, blockwise, or"),
        ("mxfp8", (10, 0), ""),
        ("current", (9, 0), ""),
    ],
)
def test_a_gpu_without_it_is_told_what_to_choose(
    recipe: str, capability: tuple[int, int], said: str, h100: Emulated
) -> None:
    refusal = h100(f"{IN_FP8}:refusal", dict(recipe=recipe, format="e4m3"), capability)
    assert said in refusal
    assert bool(said) == bool(refusal)


def test_the_recipe_of_7b_in_fp8(h100: Emulated, tmp_path: Path) -> None:
    laid_over = ("--config", "examples/pretrain_7b_h100_fp8.yaml")
    words = words_of_smoke("examples/pretrain_7b.sh", tmp_path, *laid_over)
    ranks, run = config_of(words)
    assert run.train.fp8.recipe == "current"
    assert run.train.fp8.emulation, "there is no GPU"
    done = h100.ranks(ranks, "tests.support.recipe_smoke:train", words)
    assert done == [(3, "tensor 2 x pipeline 2 x data 1")] * 4
    newest = newest_checkpoint(tmp_path / "out" / "checkpoints")
    assert newest is not None
    assert Manifest.read(newest).layers["language"] == "transformer_engine"

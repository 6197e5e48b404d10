"""Layers of Transformer Engine on a GPU learn what a CPU learns; see test_gpu.py.

All are skipped where it is not installed, and a recipe of FP8 where the GPU does not have it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.compare import assert_near, print_figure
from tests.parity.layout_trace import ALL_PARTS, NUM_STEPS, Trace, resumed_trace, trace
from tests.parity.packed_trace import trace_of_samples
from tests.parity.test_gpu import TORCH
from tests.support.tiny import tiny_run
from vila_mc.errors import SetupError
from vila_mc.model.fp8 import fp8_options
from vila_mc.parallel.installed import has_transformer_engine

pytestmark = pytest.mark.gpu

TE: dict[str, Any] = {"layers": "transformer_engine"}
IN_BF16 = TE | {"precision": "bf16"}
STOP_AFTER = 2
RECIPES: dict[str, dict[str, Any]] = {
    "delayed": dict(recipe="delayed", amax_history=16),
    "current": dict(recipe="current", parts=["vision", "language"]),
    "blockwise": dict(recipe="blockwise", format="e4m3"),
    "mxfp8": dict(recipe="mxfp8", format="e4m3"),
}


@pytest.fixture(scope="module", autouse=True)
def _needs_transformer_engine() -> None:
    if not has_transformer_engine():
        pytest.skip("Transformer Engine is not installed here for this torch")


@pytest.fixture(params=RECIPES)
def in_fp8(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of training by a recipe that this GPU has."""
    options = IN_BF16 | {"fp8": RECIPES[request.param]}
    try:
        fp8_options(tiny_run(train=options), "language")
    except SetupError as error:
        pytest.skip(str(error))
    return options


# Its products of fp32 matrices are in TF32.
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_what_a_cpu_learns(
    precision: str,
    seed: Path,
    on_cpu: dict[str, Trace],
) -> None:
    (got,) = trace(seed, {}, [ALL_PARTS], TE | {"precision": precision})
    name = f"Transformer Engine, {precision} on GPU against fp32 on CPU, 5 steps"
    print_figure(name, got, on_cpu["everything"])
    assert_near(got, on_cpu["everything"])


def test_fp8_is_near(
    in_fp8: dict[str, Any],
    seed: Path,
    on_cpu: dict[str, Trace],
) -> None:
    (got,), (in_bf16,) = (trace(seed, {}, [ALL_PARTS], train) for train in (in_fp8, IN_BF16))
    recipe = in_fp8["fp8"]["recipe"]
    print_figure(f"FP8 {recipe} on GPU against fp32 on CPU, 5 steps", got, on_cpu["everything"])
    print_figure(f"FP8 {recipe} against bf16, both on GPU, 5 steps", got, in_bf16)
    assert got != in_bf16, "nothing was computed in FP8"
    for (loss, norm), (exact_loss, exact_norm) in zip(got, on_cpu["everything"], strict=True):
        assert loss == pytest.approx(exact_loss, rel=4e-3)
        assert norm == pytest.approx(exact_norm, rel=0.1)


def test_packed_samples_are_near_separate_ones(seed: Path) -> None:
    packed, separate = (trace_of_samples(seed, {}, is_on, **IN_BF16) for is_on in (True, False))
    print_figure(
        "Transformer Engine, packed against separate samples, bf16 on GPU", packed, separate
    )
    assert_near(packed, separate)


def test_a_resumed_run_goes_on_bit_for_bit(
    in_fp8: dict[str, Any],
    seed: Path,
    tmp_path: Path,
) -> None:
    (unbroken,) = trace(seed, {}, [ALL_PARTS], in_fp8)
    before = resumed_trace(tmp_path, seed, {}, steps=STOP_AFTER, save=True, train=in_fp8)
    rest = NUM_STEPS - STOP_AFTER
    after = resumed_trace(tmp_path, seed, {}, steps=rest, save=False, train=in_fp8)
    assert [*before, *after] == unbroken


@pytest.mark.parametrize(("first", "second"), [(TORCH, TE), (TE, TORCH)], ids=["to TE", "from TE"])
def test_a_run_goes_on_with_other_layers(
    first: dict[str, Any],
    second: dict[str, Any],
    seed: Path,
    on_cpu: dict[str, Trace],
    tmp_path: Path,
) -> None:
    resumed_trace(tmp_path, seed, {}, steps=STOP_AFTER, save=True, train=first)
    rest = NUM_STEPS - STOP_AFTER
    after = resumed_trace(tmp_path, seed, {}, steps=rest, save=False, train=second)
    assert_near(after, on_cpu["everything"][STOP_AFTER:])


def test_recomputation_in_fp8_changes_nothing(in_fp8: dict[str, Any], seed: Path) -> None:
    again = in_fp8 | {"recompute": "full"}
    (kept,), (recomputed,) = (trace(seed, {}, [ALL_PARTS], train) for train in (in_fp8, again))
    assert_near(recomputed, kept)


def test_a_step_runs_on_the_stream_that_is_current(
    seed: Path,
    on_cpu: dict[str, Trace],
) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # work on the default stream would come too early
        (got,) = trace(seed, {}, [ALL_PARTS], IN_BF16)
    assert_near(got, on_cpu["everything"])

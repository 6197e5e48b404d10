"""With torch's layers a GPU learns what a CPU learns.

Needs a GPU; run with ``-m gpu -s`` to see the figures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.compare import (
    GRAD_NORM_TOLERANCE,
    assert_every_rank_matches,
    assert_near,
    print_figure,
)
from tests.parity.layout_trace import (
    ALL_PARTS,
    NUM_STEPS,
    TRAINABLES,
    Trace,
    resumed_trace,
    trace,
    write_seed_checkpoint,
)
from tests.parity.packed_trace import gradients_of_samples, trace_of_samples
from tests.parity.test_layouts import BF16, QWEN2, RECOMPUTE
from tests.support.without_gpu import without_gpu
from vila_mc.kernels import native

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_whole_products")]

STOP_AFTER = 2
TORCH: dict[str, Any] = {"layers": "torch"}
"""Also where Transformer Engine is installed: test_gpu_layers.py has its layers."""
IN_BF16 = TORCH | BF16


@pytest.mark.parametrize("trained", TRAINABLES)
def test_a_gpu_learns_what_a_cpu_learns(trained: str, seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, {}, [TRAINABLES[trained]], TORCH)
    print_figure(f"fp32 on GPU against CPU, 5 steps, {trained}", got, on_cpu[trained])
    assert_every_rank_matches([got], on_cpu[trained], trained)


def test_siglip_with_a_tied_qwen2_learns_what_it_learns_on_a_cpu(tmp_path: Path) -> None:
    without_gpu(write_seed_checkpoint, tmp_path, QWEN2)
    (expected,) = without_gpu(trace, tmp_path, {}, model=QWEN2)
    (got,) = trace(tmp_path, {}, train=TORCH, model=QWEN2)
    print_figure("fp32 on GPU against CPU, 5 steps, SigLIP with a tied Qwen2", got, expected)
    assert_every_rank_matches([got], expected)


@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
def test_every_gradient_is_that_of_a_cpu(packed: bool, seed: Path) -> None:
    got = gradients_of_samples(seed, packed, **TORCH)
    expected = without_gpu(gradients_of_samples, seed, False)
    assert got.keys() == expected.keys()
    worst = max(abs(got[name] - g).max() / abs(g).max() for name, g in expected.items())
    print(f"\n| gradients on GPU {'packed' if packed else 'separate'} against CPU | {worst:.1e} |")
    assert worst < GRAD_NORM_TOLERANCE


def test_packed_samples_teach_what_separate_ones_do(seed: Path) -> None:
    packed, separate = (trace_of_samples(seed, {}, is_on, **TORCH) for is_on in (True, False))
    print_figure("packed against separate samples, fp32 on GPU, 5 steps", packed, separate)
    assert_every_rank_matches([packed], separate)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision: str, seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, {}, [ALL_PARTS], TORCH | {"precision": precision})
    print_figure(f"{precision} on GPU against fp32 on CPU, 5 steps", got, on_cpu["everything"])
    assert_near(got, on_cpu["everything"])
    assert got != on_cpu["everything"]


def test_bf16_packed_samples_are_near_separate_ones(seed: Path) -> None:
    packed = trace_of_samples(seed, {}, True, **IN_BF16)
    separate = trace_of_samples(seed, {}, False, **IN_BF16)
    print_figure("packed against separate samples, bf16 on GPU, 5 steps", packed, separate)
    assert_near(packed, separate)


@pytest.mark.parametrize("train", [TORCH, IN_BF16], ids=["fp32", "bf16"])
def test_equal_runs_have_equal_bits(train: dict[str, Any], seed: Path) -> None:
    first, second = (trace(seed, {}, [ALL_PARTS], train) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("train", [TORCH, IN_BF16], ids=["fp32", "bf16"])
def test_a_resumed_run_goes_on_bit_for_bit(
    train: dict[str, Any], seed: Path, tmp_path: Path
) -> None:
    (unbroken,) = trace(seed, {}, [ALL_PARTS], train)
    options: dict[str, Any] = dict(parallel={}, train=train)
    before = resumed_trace(tmp_path, seed, steps=STOP_AFTER, save=True, **options)
    after = resumed_trace(tmp_path, seed, steps=NUM_STEPS - STOP_AFTER, save=False, **options)
    assert [*before, *after] == unbroken


def test_a_run_of_a_cpu_goes_on_on_a_gpu(
    seed: Path, tmp_path: Path, on_cpu: dict[str, Trace]
) -> None:
    options: dict[str, Any] = dict(parallel={}, train=TORCH)
    without_gpu(resumed_trace, tmp_path, seed, steps=STOP_AFTER, save=True, **options)
    after = resumed_trace(tmp_path, seed, steps=NUM_STEPS - STOP_AFTER, save=False, **options)
    assert_every_rank_matches([after], on_cpu["everything"][STOP_AFTER:])


@pytest.mark.parametrize("train", [TORCH, IN_BF16], ids=["fp32", "bf16"])
def test_recomputation_changes_nothing(train: dict[str, Any], seed: Path) -> None:
    kept, again = (trace(seed, {}, [ALL_PARTS], train | more)[0] for more in ({}, RECOMPUTE))
    assert_every_rank_matches([again], kept)


def test_overlapped_reduction_changes_nothing(seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, dict(overlap_grad_reduce=True), train=TORCH)
    assert_every_rank_matches([got], on_cpu["everything"])


def test_kernels_and_their_twins_teach_the_same(
    seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernels,) = trace(seed, {}, train=TORCH)
    nothing: Callable[[], frozenset[str]] = frozenset
    monkeypatch.setattr(native, "loaded", nothing)
    (twins,) = trace(seed, {}, train=TORCH)
    print_figure("kernels against their twins, fp32 on GPU, 5 steps", kernels, twins)
    assert_every_rank_matches([kernels], twins)


def test_a_step_runs_on_the_stream_that_is_current(seed: Path, on_cpu: dict[str, Trace]) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # work on the default stream would come too early
        (got,) = trace(seed, {}, train=TORCH)
    assert_every_rank_matches([got], on_cpu["everything"])

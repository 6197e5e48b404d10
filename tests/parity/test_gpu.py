"""A GPU learns what a CPU learns. Needs one; run with ``-m gpu -s`` to see the figures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.compare import GRAD_NORM_TOLERANCE, assert_every_rank_matches
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

pytestmark = pytest.mark.gpu

STOP_AFTER = 2


@pytest.fixture(scope="module", autouse=True)
def _whole_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that the CPU wrote and all traces start from."""
    directory: Path = tmp_path_factory.mktemp("seed")
    without_gpu(write_seed_checkpoint, directory)
    return directory


@pytest.fixture(scope="module")
def on_cpu(seed: Path) -> dict[str, Trace]:
    """The trace of a CPU, by what is trained."""
    traces = without_gpu(trace, seed, {}, list(TRAINABLES.values()))
    return dict(zip(TRAINABLES, traces, strict=True))


def _figure(name: str, got: Trace, expected: Trace) -> None:
    """A line of the table of tests/gpu.sh: the greatest relative differences."""
    loss, norm = (
        max(abs(a[index] / b[index] - 1) for a, b in zip(got, expected, strict=True))
        for index in range(2)
    )
    print(f"\n| {name} | loss {loss:.1e}, gradient norm {norm:.1e} |")


@pytest.mark.parametrize("trained", TRAINABLES)
def test_a_gpu_learns_what_a_cpu_learns(trained: str, seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, {}, [TRAINABLES[trained]])
    _figure(f"fp32 on GPU against CPU, 5 steps, {trained}", got, on_cpu[trained])
    assert_every_rank_matches([got], on_cpu[trained], trained)


def test_siglip_with_a_tied_qwen2_learns_what_it_learns_on_a_cpu(tmp_path: Path) -> None:
    without_gpu(write_seed_checkpoint, tmp_path, QWEN2)
    (expected,) = without_gpu(trace, tmp_path, {}, model=QWEN2)
    (got,) = trace(tmp_path, {}, model=QWEN2)
    _figure("fp32 on GPU against CPU, 5 steps, SigLIP with a tied Qwen2", got, expected)
    assert_every_rank_matches([got], expected)


@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
def test_every_gradient_is_that_of_a_cpu(packed: bool, seed: Path) -> None:
    got = gradients_of_samples(seed, packed)
    expected = without_gpu(gradients_of_samples, seed, False)
    assert got.keys() == expected.keys()
    worst = max(abs(got[name] - g).max() / abs(g).max() for name, g in expected.items())
    print(f"\n| gradients on GPU {'packed' if packed else 'separate'} against CPU | {worst:.1e} |")
    assert worst < GRAD_NORM_TOLERANCE


def test_packed_samples_teach_what_separate_ones_do(seed: Path) -> None:
    packed, separate = (trace_of_samples(seed, {}, is_packed) for is_packed in (True, False))
    _figure("packed against separate samples, fp32 on GPU, 5 steps", packed, separate)
    assert_every_rank_matches([packed], separate)


def _assert_near(got: Trace, expected: Trace) -> None:
    """As near as bf16 comes."""
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], rel=2e-3)
    assert [norm for _, norm in got] == pytest.approx([norm for _, norm in expected], rel=3e-2)


def test_bf16_is_near(seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, {}, [ALL_PARTS], BF16)
    _figure("bf16 on GPU against fp32 on CPU, 5 steps", got, on_cpu["everything"])
    _assert_near(got, on_cpu["everything"])
    assert got != on_cpu["everything"]


def test_bf16_packed_samples_are_near_separate_ones(seed: Path) -> None:
    packed = trace_of_samples(seed, {}, True, precision="bf16")
    separate = trace_of_samples(seed, {}, False, precision="bf16")
    _figure("packed against separate samples, bf16 on GPU, 5 steps", packed, separate)
    _assert_near(packed, separate)


@pytest.mark.parametrize("train", [{}, BF16], ids=["fp32", "bf16"])
def test_equal_runs_have_equal_bits(train: dict[str, Any], seed: Path) -> None:
    first, second = (trace(seed, {}, [ALL_PARTS], train) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("train", [{}, BF16], ids=["fp32", "bf16"])
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
    options: dict[str, Any] = dict(parallel={})
    without_gpu(resumed_trace, tmp_path, seed, steps=STOP_AFTER, save=True, **options)
    after = resumed_trace(tmp_path, seed, steps=NUM_STEPS - STOP_AFTER, save=False, **options)
    assert_every_rank_matches([after], on_cpu["everything"][STOP_AFTER:])


@pytest.mark.parametrize("train", [{}, BF16], ids=["fp32", "bf16"])
def test_recomputation_changes_nothing(train: dict[str, Any], seed: Path) -> None:
    kept, again = (trace(seed, {}, [ALL_PARTS], train | more)[0] for more in ({}, RECOMPUTE))
    assert_every_rank_matches([again], kept)


def test_overlapped_reduction_changes_nothing(seed: Path, on_cpu: dict[str, Trace]) -> None:
    (got,) = trace(seed, dict(overlap_grad_reduce=True))
    assert_every_rank_matches([got], on_cpu["everything"])


def test_kernels_and_their_twins_teach_the_same(
    seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernels,) = trace(seed, {})
    nothing: Callable[[], frozenset[str]] = frozenset
    monkeypatch.setattr(native, "loaded", nothing)
    (twins,) = trace(seed, {})
    _figure("kernels against their twins, fp32 on GPU, 5 steps", kernels, twins)
    assert_every_rank_matches([kernels], twins)


def test_a_step_runs_on_the_stream_that_is_current(seed: Path, on_cpu: dict[str, Trace]) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # work on the default stream would come too early
        (got,) = trace(seed, {})
    assert_every_rank_matches([got], on_cpu["everything"])

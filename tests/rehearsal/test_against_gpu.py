"""What is rehearsed is what a GPU takes. Needs one; run with ``-m gpu -s`` to see the figures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rehearsal.small import small_run
from tests.support.without_gpu import without_gpu
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.rehearsal.batch import full_rows, microbatch_of
from vila_mc.rehearsal.one_rank import rehearse_rank
from vila_mc.train.step import Trainer

pytestmark = pytest.mark.gpu

MIB = 2**20
MICROBATCHES = 2
SLICE: dict[str, Any] = {
    "vision": dict(image_size=336, patch_size=14, width=1024, layers=3, heads=16, ffn=4096),
    "language": dict(
        layers=2, width=2048, ffn=5504, heads=16, kv_heads=16, vocab_size=32000, max_positions=2048
    ),
}
CASES: dict[str, dict[str, Any]] = {
    "frozen tower": {},
    "everything": {"trainable": ["vision", "connector", "language"]},
    "recompute": {"recompute": "full"},
}


def rehearsed_peak(guard: Path, train: dict[str, Any]) -> int:
    """Bytes of the second step of one rank. In a process that sees no GPU."""
    return rehearse_rank(slice_of(train), 1, 0, guard, MICROBATCHES).step.num_bytes


def slice_of(train: dict[str, Any]) -> Any:
    """Some hundred million weights in bf16."""
    return small_run(model=SLICE, data={"sequence_length": 2048}, train=train)


def measured_peak(train: dict[str, Any]) -> int:
    """The same of a real step: what the allocator gave out."""
    run = slice_of(train)
    with distributed(run.parallel, seed=1) as ranks:
        trainer = Trainer(run, ranks, build_stages(run, ranks))
        batch = microbatch_of(run, full_rows(run), needs_images=True)
        trainer.step([batch] * MICROBATCHES)
        torch.cuda.reset_peak_memory_stats()
        trainer.step([batch] * MICROBATCHES)
        return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_step_is_that_of_a_gpu(case: str, guard: Path) -> None:
    expected = without_gpu(rehearsed_peak, guard, CASES[case])
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    measured = measured_peak(CASES[case]) - before
    share = expected / measured - 1
    print(
        f"\n| rehearsed step peak against the GPU's, {case} | {expected / MIB:,.0f} and "
        f"{measured / MIB:,.0f} MiB, {share:+.1%} |"
    )
    # Kernels take memory of their own inside, and blocks are cut from greater ones.
    assert -0.08 < share < 0.02

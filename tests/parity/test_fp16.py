"""Training in fp16: near fp32, over stages that learn nothing, and exact over a stop."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.layout_trace import TRAINABLES, Trace, trace
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train import optimizer
from vila_mc.train.step import Trainer

FP16 = {"precision": "fp16"}
TOO_GREAT = 2.0**26
Figures = list[tuple[float, bool, float]]
"""Of each step: loss, whether it overflowed, and the loss scale after it."""


def steps(output: Path, seed: Path | None, number: int) -> Figures:
    """Begin from ``seed`` with a loss scale that overflows, or go on; save."""
    optimizer._FIRST_LOSS_SCALE = TOO_GREAT
    config = tiny_run(train={**FP16, "output": str(output), "steps": 20})
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        if seed is not None:
            load_weights(seed, stages)
        trainer = Trainer(config, ranks, stages)
        before = 0 if seed is not None else trainer.resume(output).step
        batches, figures = tiny_microbatches(config, 0, 1), []
        for _ in range(number):
            result = trainer.step(batches)
            scale = float(trainer.optimizer.get_loss_scale())
            figures.append((result.loss, result.overflowed, scale))
            assert result.skipped == result.overflowed
        manifest = Manifest(
            step=before + number, samples_seen=0, config=config, layout=None, versions=versions()
        )
        output.mkdir(exist_ok=True)
        PendingSave(manifest, ranks, stages, trainer.optimizer, in_background=False).finish()
        return figures


def test_the_loss_scale_falls_until_gradients_bear_it_and_is_kept(
    seed_checkpoint: Path, tmp_path: Path
) -> None:
    number = 14
    (whole,) = run_ranks(1, steps, tmp_path / "whole", seed_checkpoint, number)
    overflows = [overflowed for _, overflowed, _ in whole]
    count = sum(overflows)
    assert 2 < count < number - 2
    assert overflows == [True] * count + [False] * (number - count)
    assert whole[count - 1][2] == whole[0][2] / 2 ** (count - 1), "by half each time"
    assert len({loss for loss, _, _ in whole[: count + 1]}) == 1, "no weight has changed"
    assert whole[count + 1][0] < whole[count][0], "now one has"

    stop = count - 1
    (first,) = run_ranks(1, steps, tmp_path / "parts", seed_checkpoint, stop)
    (second,) = run_ranks(1, steps, tmp_path / "parts", None, number - stop)
    assert first + second == whole


def test_it_trains_near_fp32(seed_checkpoint: Path, single_rank: dict[str, Trace]) -> None:
    ((in_fp16,),) = run_ranks(1, trace, seed_checkpoint, {}, train=FP16)
    for (loss, norm), (exact_loss, exact_norm) in zip(
        in_fp16, single_rank["everything"], strict=True
    ):
        assert loss == pytest.approx(exact_loss, rel=1e-4)
        assert norm == pytest.approx(exact_norm, rel=1e-2)


@pytest.mark.parametrize(
    "parallel", [dict(pipeline=2), dict(tensor=2, sequence=True)], ids=["pp2", "tp2-sp"]
)
def test_ranks_that_learn_nothing_scale_as_the_others_do(
    parallel: dict[str, Any], seed_checkpoint: Path
) -> None:
    """The last stage scales the loss, and has no weight that learns."""
    trained = [TRAINABLES["align"]]
    ((expected,),) = run_ranks(1, trace, seed_checkpoint, {}, trained, train=FP16)
    for traces in run_ranks(2, trace, seed_checkpoint, parallel, trained, train=FP16):
        for (loss, norm), (exact_loss, exact_norm) in zip(traces[0], expected, strict=True):
            assert loss == pytest.approx(exact_loss, rel=1e-4)
            assert norm == pytest.approx(exact_norm, rel=1e-2)

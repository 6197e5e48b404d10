"""Frozen parts cost neither gradients nor optimizer state, at any layout."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.config.train import MODEL_PARTS
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


def _after_one_step(parallel: dict[str, Any], trainable: Sequence[str]) -> dict[str, Any]:
    """On this rank: names with a gradient buffer, names that changed, elements of one moment,
    and the number of weights of each part."""
    config = tiny_run(parallel=parallel, train={"trainable": list(trainable)})
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
        weights = {n: p for stage in trainer.stages for n, p in stage.named_parameters()}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        trainer.step(batches)  # the learning rate of the first step is 0 or in warm-up
        trainer.step(batches)
        return {
            "gradients": {n for n, p in weights.items() if _has_gradient(p)},
            "changed": {n for n, p in weights.items() if not p.equal(before[n])},
            "moments": _moment_elements(trainer.optimizer),
            "connector": sum(p.numel() for n, p in weights.items() if n.startswith("connector.")),
            "all": set(weights),
        }


def _has_gradient(weight: torch.Tensor) -> bool:
    return weight.grad is not None or getattr(weight, "main_grad", None) is not None


def _moment_elements(optimizer: Any) -> int:
    states = [
        state
        for part in optimizer.chained_optimizers
        if part.optimizer is not None
        for state in part.optimizer.state.values()
    ]
    return sum(state["exp_avg"].numel() for state in states)


@pytest.mark.parametrize(
    ("world_size", "parallel"),
    [(2, dict()), (2, dict(tensor=2)), (2, dict(pipeline=2))],
    ids=["dp2", "tp2", "pp2"],
)
def test_align_trains_the_connector_alone(world_size: int, parallel: dict[str, Any]) -> None:
    by_rank = run_ranks(world_size, _after_one_step, parallel, ("connector",))
    copies = parallel.get("tensor", 1)  # every tensor-parallel rank holds the whole connector
    data_size = world_size // (copies * parallel.get("pipeline", 1))
    held = sum(rank["connector"] for rank in by_rank)
    assert held > 0
    assert sum(rank["moments"] for rank in by_rank) == held // data_size
    for rank in by_rank:
        connector = {name for name in rank["all"] if name.startswith("connector.")}
        assert rank["gradients"] == rank["changed"] == connector


@pytest.mark.parametrize("frozen", MODEL_PARTS)
def test_one_part_can_be_frozen(frozen: str) -> None:
    trainable = [part for part in MODEL_PARTS if part != frozen]
    (rank,) = run_ranks(1, _after_one_step, {}, trainable)
    expected = {name for name in rank["all"] if not name.startswith(f"{frozen}.")}
    assert rank["gradients"] == rank["changed"] == expected != rank["all"]

"""What learns, and how fast, is the same at every layout, down to single layers."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import Trace, resumed_trace, trace
from tests.support.ranks import run_ranks
from vila_mc.checkpoint import state

STOP_AFTER = 2

SELECTIONS = {
    "end of the tower": ("vision.layers[-1:]", "connector"),
    "upper layers": ("language.layers[2:]",),
    "head": ("language.norm", "language.head"),
    "beginnings": ("vision.embedding", "language.embedding", "language.layers[1]"),
}
"""What the tests train. On two stages, the first has nothing to learn in two of them."""
PARTS = {
    "vision": dict(lr=3e-3, layer_decay=0.5),
    "connector": dict(weight_decay=0.5),
    "language": dict(lr=5e-4, weight_decay=0.1),
}


def optimizer_of(trainable: tuple[str, ...]) -> dict[str, Any]:
    """Rates and decays of the parts that learn; of others they are refused."""
    learning = {name.split(".")[0] for name in trainable}
    return {"parts": {part: PARTS[part] for part in PARTS if part in learning}, "min_lr": 1e-4}


OPTIMIZERS = [optimizer_of(trainable) for trainable in SELECTIONS.values()]
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "pp2-recompute": (2, dict(pipeline=2), {"recompute": "full"}),
    "pp2-virtual2-dedicated": (2, dict(pipeline=2, virtual=2, vision_placement="dedicated"), {}),
    "tp2-pp2-sp": (4, dict(tensor=2, pipeline=2, sequence=True), {}),
}
MORE: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp2": (2, dict(tensor=2), {}),
    "pp4-dedicated": (4, dict(pipeline=4, vision_placement="dedicated"), {}),
    "dp2-tp2-pp2-overlap": (8, dict(tensor=2, pipeline=2, overlap_grad_reduce=True), {}),
}
"""Marked slow: ``bash tests/run.sh tests/parity/test_trainable.py`` runs them, too."""


@pytest.fixture(scope="module")
def one_rank(seed_checkpoint: Path) -> list[Trace]:
    """The trace of one rank for each selection."""
    (traces,) = run_ranks(
        1, trace, seed_checkpoint, {}, list(SELECTIONS.values()), optimizers=OPTIMIZERS
    )
    return traces


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_a_selection_learns_alike(
    layout: str, seed_checkpoint: Path, one_rank: list[Trace]
) -> None:
    world_size, parallel, train = (LAYOUTS | MORE)[layout]
    arguments = (seed_checkpoint, parallel, list(SELECTIONS.values()), train)
    by_rank = run_ranks(world_size, trace, *arguments, optimizers=OPTIMIZERS)
    for index, name in enumerate(SELECTIONS):
        assert_every_rank_matches([traces[index] for traces in by_rank], one_rank[index], name)


@pytest.mark.parametrize(
    ("trainable", "first", "second"),
    [
        (SELECTIONS["upper layers"], dict(pipeline=2), dict(pipeline=2)),
        (("vision.layers[-1:]", "language.layers[::2]"), dict(pipeline=2), dict(tensor=2)),
    ],
    ids=["pp2", "pp2 to tp2"],
)
def test_a_selection_goes_on_where_it_stopped(
    trainable: tuple[str, ...],
    first: dict[str, Any],
    second: dict[str, Any],
    seed_checkpoint: Path,
    tmp_path: Path,
) -> None:
    train, optimizer = {"trainable": list(trainable)}, optimizer_of(trainable)
    ((expected,),) = run_ranks(1, trace, seed_checkpoint, {}, [trainable], optimizers=[optimizer])
    arguments = (resumed_trace, tmp_path, seed_checkpoint)
    before = run_ranks(2, _without_steps_on_rank_0, *arguments, first, train)
    assert_every_rank_matches(before, expected[:STOP_AFTER], "before")
    options: dict[str, Any] = dict(steps=STOP_AFTER, save=False, train=train, optimizer=optimizer)
    after = run_ranks(2, *arguments, second, **options)
    assert_every_rank_matches(after, expected[STOP_AFTER : 2 * STOP_AFTER], "after")


def _without_steps_on_rank_0(
    begin: Any, checkpoints: Path, seed: Path, parallel: dict[str, Any], train: dict[str, Any]
) -> Trace:
    """Train and save, with a FusedAdam that counts no steps where there is nothing to step."""
    if os.environ["RANK"] == "0" and train["trainable"] == list(SELECTIONS["upper layers"]):
        create = state._create_missing_moments

        def forget(optimizer: Any) -> None:
            create(optimizer)
            for part in optimizer.chained_optimizers:
                for group in part.param_groups:
                    group.pop("step")

        state._create_missing_moments = forget
    optimizer = optimizer_of(tuple(train["trainable"]))
    options = dict(steps=STOP_AFTER, save=True, train=train, optimizer=optimizer)
    traced: Trace = begin(checkpoints, seed, parallel, **options)
    return traced

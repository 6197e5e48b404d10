"""A run that changes its layout at every stop reads the same samples and learns the same."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import trace_of
from tests.support.ranks import run_ranks
from vila_mc.config.load import load_run
from vila_mc.flow import Microbatch
from vila_mc.parallel.groups import distributed
from vila_mc.topology.layout import Layout
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data

LOSS_TOLERANCE = 1e-5
STEPS_BETWEEN_STOPS = 2
LAYOUTS = {
    "tensor 2": (2, {"parallel.tensor": 2}),
    "pipeline 2, vision on its own stage": (
        2,
        {"parallel.pipeline": 2, "parallel.vision_placement": "dedicated"},
    ),
    "data 2": (2, {}),
    "pipeline 2, virtual 2": (2, {"parallel.pipeline": 2, "parallel.virtual": 2}),
    "tensor 2, pipeline 2": (4, {"parallel.tensor": 2, "parallel.pipeline": 2}),
    "one rank": (1, {}),
}
NUM_STEPS = STEPS_BETWEEN_STOPS * len(LAYOUTS)


class _StopAfter:
    """A request to stop that is made in the step ``steps``, counted by those who look."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def was_made(self) -> bool:
        self.left -= 1
        return self.left <= 0


def _train(
    recipe: Path, output: Path, packing: bool, steps: int, parallel: dict[str, Any]
) -> list[list[bytes]]:
    """Train some steps; returns the rows that this rank read, if it answers for its replica."""
    options = {
        "train.output": str(output),
        "train.steps": NUM_STEPS,
        "model.language.layers": 4,
        "data.packing": packing,
        **parallel,
    }
    config = load_run([recipe], options)
    rows = []
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    at = layout.coordinates(int(os.environ["RANK"]))
    with (
        training_data(config, layout, at) as data,
        distributed(config.parallel, seed=1, timeout_minutes=2) as ranks,
    ):
        loop = TrainingLoop(config, ranks, data, _StopAfter(steps))  # type: ignore[arg-type]
        learn = loop.trainer.step

        def watched(microbatches: Sequence[Microbatch], *, should_stop: bool) -> Any:
            if (ranks.at.tensor, ranks.at.pipeline) == (0, 0):
                rows.append([bytes(row.numpy()) for batch in microbatches for row in batch.tokens])
            return learn(microbatches, should_stop=should_stop)

        loop.trainer.step = watched  # type: ignore[assignment]
        try:
            loop.fit()
        finally:
            loop.close()
    return rows


def _by_step(rows_by_rank: list[list[list[bytes]]]) -> list[Counter[bytes]]:
    """What each step read on all ranks together, in no order."""
    answering = [rows for rows in rows_by_rank if rows]
    return [Counter(row for rows in step for row in rows) for step in zip(*answering, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["a sample to a row", "packed"])
def test_every_stop_changes_the_layout(packing: bool, recipe: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    expected = _by_step(run_ranks(1, _train, recipe, unbroken, packing, NUM_STEPS, {}))
    read = []
    for world_size, parallel in LAYOUTS.values():
        arguments = (recipe, broken, packing, STEPS_BETWEEN_STOPS, parallel)
        read += _by_step(run_ranks(world_size, _train, *arguments))
    assert len(read) == NUM_STEPS
    assert read == expected
    for (step, loss, *figures), (_, their_loss, *their_figures) in zip(
        trace_of(broken), trace_of(unbroken), strict=True
    ):
        assert loss == pytest.approx(their_loss, rel=LOSS_TOLERANCE), step
        assert figures == pytest.approx(their_figures, rel=10 * LOSS_TOLERANCE), step

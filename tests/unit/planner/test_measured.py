"""What is foretold of this engine beside what one H100 measured (docs/gpu_results.md)."""

from pathlib import Path

import pytest

from vila_mc.config.load import load_run
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.plan import plan_of
from vila_mc.topology.hardware import GPUS

RECIPE = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
ALONE = {
    "data.blend": "[{path: none}]",
    "parallel.tensor": "1",
    "parallel.sequence": "false",
    "parallel.pipeline": "1",
    "train.global_batch": "4",
    "train.micro_batch": "1",
    "train.recompute": "none",
}
FOUR = {"model.language.layers": "4"}
MEASURED = {
    "rows of 1 sample": (FOUR, 8, 0.312, 22.9),
    "recompute full": ({**FOUR, "train.recompute": "full"}, 8, 0.356, 20.2),
    "every part trained": (
        {**FOUR, "train.trainable": "[vision, connector, language]"},
        8,
        0.425,
        31.3,
    ),
    "the whole 7B, align": (
        {"train.trainable": "[connector]", "data.sequence_length": "2048"},
        4,
        0.682,
        23.6,
    ),
}
"""Overrides, images of a row; seconds of a step and GiB at its peak, on one H100."""


@pytest.mark.parametrize("name", MEASURED)
def test_an_h100_took_and_held_what_is_foretold(name: str) -> None:
    overrides, images, seconds, gib = MEASURED[name]
    config = load_run([RECIPE], {**ALONE, **overrides})
    plan = plan_of(config, 1, GPUS["h100-80g"], FITTED, Known(images=images))
    assert plan.time.total == pytest.approx(seconds, rel=0.2)
    assert plan.fullest() / 2**30 == pytest.approx(gib, rel=0.2)

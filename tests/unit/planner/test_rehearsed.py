"""A rehearsal beside the plan: which step it is of, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.rehearsal_json import rehearsal_json
from vila_mc.commands.plan_cluster import main
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.planner.constants import FITTED
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.planner.rehearsed import planned_like, read_rehearsal
from vila_mc.topology.hardware import GPUS

A100 = GPUS["a100-80g"]


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    """Of few layers, in a layout of its own."""
    return load_run([], {"train.global_batch": "64", "model.language.layers": "8"})


@pytest.fixture(scope="module")
def plan(recipe: RunConfig) -> Plan:
    """What was rehearsed: not the recipe's layout."""
    text = "tensor=2,pipeline=2,micro_batch=4,recompute=full"
    return plan_of(with_layout(recipe, text), 8, A100, FITTED)


def _written(folder: Path, values: Any) -> Path:
    file = folder / "rehearsal.json"
    file.write_text(json.dumps(values))
    return file


def test_the_plan_is_of_the_step_that_was_rehearsed(
    recipe: RunConfig, plan: Plan, tmp_path: Path
) -> None:
    rehearsed = read_rehearsal(_written(tmp_path, rehearsal_json(plan)))
    found = planned_like(rehearsed, recipe, A100, FITTED)
    assert found.layout == plan.layout
    assert found.job.micro_batch == 4
    assert found.config.train.recompute == "full"
    assert found.memory == plan.memory


def test_the_fullest_rank_stands_for_its_stage(plan: Plan, tmp_path: Path) -> None:
    values = rehearsal_json(plan)
    fuller = json.loads(json.dumps(values["ranks"][1])) | {"rank": 7}
    fuller["step"]["num_bytes"] += 1
    values["ranks"].append(fuller)
    stages = read_rehearsal(_written(tmp_path, values)).stages()
    assert [rank.rank for rank in stages] == [0, 7]


def _other_weights(values: dict[str, Any]) -> None:
    values["ranks"][1]["num_weights"] *= 1.01


def _other_step(values: dict[str, Any]) -> None:
    values["microbatches"] = 7


def _other_layout(values: dict[str, Any]) -> None:
    values["layout"] |= {"pipeline": 1, "data": 4}
    values["ranks"] = values["ranks"][:1]


def _no_ranks(values: dict[str, Any]) -> None:
    values["ranks"] = []


def _no_layout(values: dict[str, Any]) -> None:
    values["layout"]["tensor"] = 0


def _huge_layout(values: dict[str, Any]) -> None:
    values["layout"]["pipeline"] = 10**9


def _no_stage(values: dict[str, Any]) -> None:
    values["ranks"][0]["pipeline"] = 2


def _no_number(values: dict[str, Any]) -> None:
    values["ranks"][0]["num_weights"] = -1


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_other_weights, "its stage 1 holds .* million weights, and .* here"),
        (_other_step, "7 microbatches on 2 data-parallel ranks are no whole part of"),
        (_other_layout, "of another recipe, or of other options: a rank of its stage 0"),
        (_no_ranks, "shows no rank at the end of its step: rank 0: weight"),
        (_no_layout, "is damaged: its layout is tensor 0"),
        (_huge_layout, "is damaged: its layout is tensor 2 x pipeline 1000000000"),
        (_no_stage, "is damaged: a stage is beyond its tensor 2 x pipeline 2"),
        (_no_number, "is damaged: ranks.0.num_weights must be at least 0"),
    ],
)
def test_what_is_of_another_step_is_refused(
    spoil: Any, told: str, recipe: RunConfig, plan: Plan, tmp_path: Path
) -> None:
    values = rehearsal_json(plan)
    spoil(values)
    file = _written(tmp_path, values)
    with pytest.raises(ConfigError, match=told) as refusal:
        planned_like(read_rehearsal(file), recipe, A100, FITTED)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", "nothing", "[" * 100_000])
def test_a_file_that_is_none_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "rehearsal.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"rehearsal\.json is damaged.* the JSON that"):
        read_rehearsal(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_rehearsal(tmp_path / "none.json")


def test_a_rehearsal_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rehearsal is for the page alone"):
        main(["--gpus", "8", "--rehearsal", str(tmp_path / "none.json")])

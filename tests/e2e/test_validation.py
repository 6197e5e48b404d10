"""Validation in whole runs: the same at every layout, and without a trace in what is learnt."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import write_recipe
from tests.support.ranks import run_ranks
from tests.support.records import without_speed
from tests.support.tiny_data import write_dataset
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.config.load import load_run
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.parallel.groups import distributed
from vila_mc.topology.layout import Layout
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"parallel.tensor": 2}),
    "pipeline 2": (2, {"parallel.pipeline": 2}),
    "data 2": (2, {"train.micro_batch": 2}),
}
NUM_STEPS = 5
NEVER = 99
IN_THE_FIRST_VALIDATION = 3
Records = list[dict[str, Any]]


class _StopAfter:
    """A request to stop that is made at the ``looks``-th look at it: one a step or validation."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    @property
    def was_made(self) -> bool:
        self.left -= 1
        return self.left <= 0


def _train(recipe: Path, output: Path, looks: int, options: dict[str, Any]) -> None:
    """Train until a request to stop, or to the end."""
    given = {"train.output": str(output), "train.steps": NUM_STEPS, **options}
    config = load_run([recipe], given)
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    at = layout.coordinates(int(os.environ["RANK"]))
    with (
        training_data(config, layout, at) as data,
        distributed(config.parallel, seed=1, timeout_minutes=2) as ranks,
    ):
        loop = TrainingLoop(config, ranks, data, _StopAfter(looks))  # type: ignore[arg-type]
        try:
            loop.fit()
        finally:
            loop.close()


def _records(output: Path) -> tuple[Records, Records]:
    """Those of steps and those of validations, without their times."""
    records = [without_speed(record) for record in read_metrics(output / METRICS_NAME)]
    validations = [record for record in records if "validation_loss" in record]
    return [record for record in records if "loss" in record], validations


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe of packed rows, and the options that validate on 7 samples and half of 10."""
    folder = tmp_path_factory.mktemp("packed")
    tokenizer, prefix = write_dataset(folder)
    held_out = []
    for name, count in (("one", 7), ("two", 10)):
        (folder / name).mkdir()
        held_out.append(write_dataset(folder / name, count)[1])
    recipe = write_recipe(folder / "recipe.yaml", tokenizer, prefix)
    validation = [{"path": str(held_out[0])}, {"path": str(held_out[1]), "epochs": 0.5}]
    options = {
        "data.packing": True,
        "data.sequence_length": 64,
        "train.micro_batch": 1,
        "data.validation": validation,
        "train.validate_every": 2,
        "train.save_every": 3,
    }
    return recipe, options


@pytest.fixture(scope="module")
def one_rank(packed: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an unbroken run of one rank."""
    output = tmp_path_factory.mktemp("one_rank")
    recipe, options = packed
    run_ranks(1, _train, recipe, output, NEVER, options)
    return output


def test_a_run_learns_the_same_without(
    packed: tuple[Path, dict[str, Any]], one_rank: Path, tmp_path: Path
) -> None:
    recipe, options = packed
    without = {name: value for name, value in options.items() if "valid" not in name}
    run_ranks(1, _train, recipe, tmp_path, NEVER, without)
    steps, validations = _records(one_rank)
    assert _records(tmp_path) == (steps, [])
    assert [record["step"] for record in validations] == [2, 4, 5]
    losses = [record["validation_loss"] for record in validations]
    assert losses == sorted(losses, reverse=True)
    assert len({record["validation_tokens"] for record in validations}) == 1
    for record in validations:
        assert None not in record["validation_loss_by_entry"]
        low, high = sorted(record["validation_loss_by_entry"])
        assert low < record["validation_loss"] < high


def test_a_stopped_run_goes_on_bit_for_bit(
    packed: tuple[Path, dict[str, Any]], one_rank: Path, tmp_path: Path
) -> None:
    recipe, options = packed
    run_ranks(1, _train, recipe, tmp_path, IN_THE_FIRST_VALIDATION, options)
    assert resolve_checkpoint(tmp_path).name == "step-00000002"
    run_ranks(1, _train, recipe, tmp_path, NEVER, options)
    assert _records(tmp_path) == _records(one_rank)
    mine, theirs = (resolve_checkpoint(each) for each in (tmp_path, one_rank))
    shards = sorted(path.name for path in theirs.glob("*.distcp"))
    assert shards
    for name in shards:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_one_rank(
    layout: str, packed: tuple[Path, dict[str, Any]], one_rank: Path, tmp_path: Path
) -> None:
    """From the middle of its run on: fresh weights depend on the stages."""
    recipe, options = packed
    world_size, parallel = LAYOUTS[layout]
    shutil.copytree(one_rank / "step-00000003", tmp_path / "step-00000003")
    run_ranks(world_size, _train, recipe, tmp_path, NEVER, {**options, **parallel})
    found, expected = _records(tmp_path)[1], _records(one_rank)[1][1:]
    assert [record["step"] for record in found] == [4, 5]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["validation_tokens"] == theirs["validation_tokens"]
        for name in ("validation_loss", "validation_loss_by_entry"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name

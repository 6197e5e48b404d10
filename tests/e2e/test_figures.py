"""What a run of two pipeline stages says of itself: speeds, times, what it is, what it held out."""

import json
import os
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import write_recipe
from tests.support.ranks import run_ranks
from tests.support.tiny_data import write_dataset
from tests.support.traces import arrows, require_lanes, slices
from vila_mc.checkpoint.best import best_checkpoint
from vila_mc.checkpoint.directories import step_of, whole_checkpoints
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.commands import evaluate
from vila_mc.config.load import load_run, run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.observe.history import HISTORY_NAME
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.observe.record import FORMAT_VERSION, StartRecord, StepRecord
from vila_mc.observe.trace import LANES
from vila_mc.parallel.groups import distributed
from vila_mc.topology.flops import step_flops
from vila_mc.topology.layout import Layout
from vila_mc.train.faults import StopRequest
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data

PARTS = ("data", "vision", "forward", "backward", "pipeline", "reduction", "optimizer", "other")
OPTIONS: dict[str, Any] = {
    "parallel.pipeline": 2,
    "train.steps": 4,
    "train.save_every": 2,
    "train.async_save": False,
    "data.held_out": 0.2,
    "train.validate_every": 2,
    "train.keep_last": 1,
    "train.keep_best": True,
    "train.trace_steps": [2, 3],
    "train.profile_steps": [4, 4],
}
VIRTUAL: dict[str, Any] = {
    "model.language.layers": 4,
    "parallel.virtual": 2,
    "train.steps": 1,
    "train.save_every": 2,
    "train.trace_steps": [1, 1],
    "train.profile_steps": [],
}


def _train(config: RunConfig) -> None:
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    at = layout.coordinates(int(os.environ["RANK"]))
    with (
        training_data(config, layout, at) as data,
        distributed(config.parallel, seed=1, timeout_minutes=2) as ranks,
    ):
        loop = TrainingLoop(config, ranks, data, StopRequest())
        try:
            loop.fit()
        finally:
            loop.close()


@pytest.fixture(scope="module")
def both_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunConfig]:
    """Runs that have ended: of two stages, and of two with two chunks each."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder / "recipe.yaml", *write_dataset(folder, 40))
    configs = [
        load_run([recipe], {**OPTIONS, **more, "train.output": str(folder / name)})
        for name, more in (("plain", {}), ("virtual", VIRTUAL))
    ]
    for config in configs:
        run_ranks(2, _train, config, timeout=90)
    return configs


@pytest.fixture(scope="module")
def run(both_runs: list[RunConfig]) -> RunConfig:
    """The first of them."""
    return both_runs[0]


@pytest.fixture(scope="module")
def steps(run: RunConfig) -> list[dict[str, Any]]:
    """The records of its steps."""
    records = read_metrics(run.train.output / METRICS_NAME)
    return [record for record in records if "loss" in record]


def test_the_times_of_a_step_add_up(steps: list[dict[str, Any]]) -> None:
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step in steps:
        parts = {part: step[f"{part}_ms"] for part in PARTS}
        assert sum(parts.values()) == pytest.approx(step["step_ms"], abs=0.01)
        unlikely = ("data", "reduction")  # may take no time at all
        assert all(parts[part] > 0 for part in PARTS if part not in unlikely), parts
        assert step["slowest_rank"] in (0, 1)
        assert step["slowest_busy_ms"] >= step["busy_ms"] > 0
    # Little is left over, but in a step that another process disturbs.
    assert min(step["other_ms"] / step["step_ms"] for step in steps) < 0.25
    # Without async_save a step waits for the checkpoint of the one before.
    assert [step["save_ms"] for step in steps].index(max(s["save_ms"] for s in steps)) == 2


def test_speeds_are_those_of_the_step(run: RunConfig, steps: list[dict[str, Any]]) -> None:
    per = step_flops(run)
    for step in steps:
        seconds, length = step["step_ms"] / 1000, run.data.sequence_length
        assert step["positions"] == round(step["filled"] * 4 * length)
        assert step["tokens_per_second_per_rank"] == pytest.approx(
            step["positions"] / seconds / 2, rel=1e-3
        )
        assert step["images_per_second"] == pytest.approx(step["images"] / seconds, rel=1e-3)
        fewest = per.of(positions=step["positions"], pairs=step["positions"], images=step["images"])
        most = per.of(
            positions=step["positions"],
            pairs=step["positions"] * length / 2,
            images=step["images"],
        )
        assert fewest < step["flops"] < most
        assert step["tflops_per_rank"] == pytest.approx(step["flops"] / seconds / 2e12, rel=1e-2)
        assert step["mfu"] is None
        assert 0.1 < step["peak_memory_gib"] < 8


def test_what_the_run_is_stands_beside_its_figures(run: RunConfig) -> None:
    (start,) = read_metrics(run.train.output / HISTORY_NAME)
    assert set(start) == {"event"} | {field.name for field in fields(StartRecord)}
    assert (start["format_version"], start["step"], start["restart"]) == (FORMAT_VERSION, 0, 0)
    assert start["layout"] == {"tensor": 1, "pipeline": 2, "data": 1, "virtual": 1}
    assert (start["ranks"], start["device"], start["steps"]) == (2, "cpu", 4)
    assert start["config"] == json.loads(json.dumps(run_to_dict(run)))
    assert "torch" in start["versions"]
    assert start["git"] is None or re.fullmatch("[0-9a-f]{40}", start["git"]["commit"])


def test_what_is_held_out_is_validated(run: RunConfig) -> None:
    records = read_metrics(run.train.output / METRICS_NAME)
    validations = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in validations] == [2, 4]
    for record in validations:
        assert record["validation_loss_by_entry"] == [record["validation_loss"]]
        assert record["validation_tokens"] > 0
    losses = [record["validation_loss"] for record in validations]
    kept = whole_checkpoints(run.train.output)
    assert [step_of(path) for path in kept] == ([4] if losses[1] < losses[0] else [2, 4])
    assert Manifest.read(kept[-1]).validation_loss == losses[1]
    assert best_checkpoint(run.train.output) == kept[0]


def test_a_checkpoint_alone_has_the_loss_that_its_run_measured(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_metrics(run.train.output / METRICS_NAME)
    measured = next(r for r in records[::-1] if "validation_loss" in r)
    output, checkpoint = tmp_path / "loss.json", run.train.output / "step-00000004"
    command = ["--checkpoint", str(checkpoint), "--loss", "--output", str(output)]
    assert evaluate.main(command) == 0
    found = json.loads(output.read_text())
    assert found["step"] == 4
    assert found["validation_tokens"] == measured["validation_tokens"]
    assert found["validation_loss"] == pytest.approx(measured["validation_loss"], rel=1e-6)
    assert found["datasets"] == [str(run.data.blend[0].path)]
    assert "validation loss 5.9" in capsys.readouterr().out
    other = str(run.data.blend[0].path)
    assert evaluate.main([*command, "--datasets", other]) == 0  # all of it
    assert json.loads(output.read_text())["validation_tokens"] > measured["validation_tokens"]


def test_a_trace_shows_what_ranks_do(run: RunConfig, steps: list[dict[str, Any]]) -> None:
    trace = json.loads((run.train.output / "trace-2-3.json").read_text())
    require_lanes(trace, 2)
    microbatches = 4
    for rank in (0, 1):
        both = slices(trace, rank, "steps")
        assert [span["name"] for span in both] == ["step 2", "step 3"]
        for span, record in zip(both, steps[1:3], strict=True):
            assert span["dur"] == pytest.approx(1000 * record["step_ms"], rel=0.5)
        passes = [span["name"] for span in slices(trace, rank, "passes")]
        # 1F1B: the first stage runs one pass ahead of the last.
        ahead = ["forward 0"] if rank == 0 else []
        pairs = [
            name
            for number in range(microbatches)
            for name in (f"forward {number + len(ahead)}", f"backward {number}")
            if number + len(ahead) < microbatches or "backward" in name
        ]
        rest = ["reduce gradients", "gradient norm", "optimizer"]
        assert passes == 2 * ["wait for data", *ahead, *pairs, *rest]
        said = [span["name"] for span in slices(trace, rank, LANES[3])]
        assert {"all_reduce", "broadcast"} <= set(said)
        seen = len(slices(trace, rank, "vision"))
        assert 0 < seen <= 2 * microbatches if rank == 0 else seen == 0
    # In each step every micro-batch goes forward once and backward once.
    directions = Counter((sent["pid"], sent["name"]) for sent, _ in arrows(trace).values())
    assert directions == {(0, "forward"): 2 * microbatches, (1, "backward"): 2 * microbatches}
    profiles = sorted(path.name for path in (run.train.output / "profile").iterdir())
    assert profiles == ["rank-00000.json", "rank-00001.json"]


def test_a_trace_of_chunks_that_take_turns(both_runs: list[RunConfig]) -> None:
    trace = json.loads((both_runs[1].train.output / "trace-1-1.json").read_text())
    require_lanes(trace, 2)
    for rank in (0, 1):
        done = Counter(
            (span["name"], span["args"]["chunk"])
            for span in slices(trace, rank, "passes")
            if "chunk" in span["args"]
        )
        ways = ("forward", "backward")
        assert done == {
            (f"{way} {n}", chunk): 1 for way in ways for n in range(4) for chunk in (0, 1)
        }
    # Rank 0 sends both of its chunks on, rank 1 the first; gradients come back the same way.
    directions = Counter((sent["pid"], sent["name"]) for sent, _ in arrows(trace).values())
    assert directions == {
        (0, "forward"): 8,
        (1, "forward"): 4,
        (1, "backward"): 8,
        (0, "backward"): 4,
    }


@pytest.mark.parametrize("steps", [[3], [0, 2], [4, 3], [1, 2, 3]])
def test_steps_to_trace_are_a_first_and_a_last(steps: list[int]) -> None:
    for name in ("trace", "profile"):
        with pytest.raises(
            ConfigError, match=rf"train\.{name}_steps is .* first and the last step"
        ):
            load_run([], {f"train.{name}_steps": steps})


def test_every_figure_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "figures.md").read_text()
    missing = [
        field.name
        for record in (StepRecord, StartRecord)
        for field in fields(record)
        if f"`{field.name}`" not in documented
    ]
    assert not missing

"""Steps without a finite loss or gradient: passed over, the same everywhere, and not for long."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forked import train
from tests.support.ranks import run_ranks
from tests.support.records import without_speed
from vila_mc.checkpoint.directories import resolve_checkpoint, whole_checkpoints
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.whole import whole_model
from vila_mc.config.load import load_run
from vila_mc.errors import ExitCode
from vila_mc.flow import Microbatch
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.parallel.groups import distributed
from vila_mc.topology.layout import Layout
from vila_mc.train import step as step_module
from vila_mc.train.faults import StopRequest
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data
from vila_mc.train.state import TrainState

NUM_STEPS = 8
LAYOUTS = {
    "tensor 2": (2, {"parallel.tensor": 2}),
    "pipeline 2": (2, {"parallel.pipeline": 2}),
    "data 2": (2, {}),
}


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.nan


def _is_bad(labels: torch.Tensor) -> bool:
    return int(labels.clamp(min=0).sum()) % 16 == 0


def _train(
    recipe: Path,
    output: Path,
    stop_after: int | None,
    parallel: dict[str, Any],
    *,
    in_loss: bool = False,
) -> TrainState:
    """Train, with a NaN in the gradient of some samples, which their labels decide, or in their
    loss, too."""
    options = {"train.output": str(output), "train.steps": NUM_STEPS, "optimizer.weight_decay": 0.1}
    config = load_run([recipe], options | parallel)
    original = step_module.loss_sum_and_count

    def poisoned(labels: torch.Tensor, loss_bs: torch.Tensor) -> Any:
        if not _is_bad(labels):
            return original(labels, loss_bs)
        return original(labels, math.nan * loss_bs if in_loss else _NanGradient.apply(loss_bs))

    step_module.loss_sum_and_count = poisoned
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    with (
        training_data(config, layout, layout.coordinates(int(os.environ["RANK"]))) as data,
        distributed(config.parallel, seed=1, timeout_minutes=2) as ranks,
    ):
        stop = StopRequest()
        loop = TrainingLoop(config, ranks, data, stop)
        learn = loop.trainer.step

        def stopping(microbatches: Sequence[Microbatch], *, should_stop: bool) -> Any:
            should_stop = loop.state.step + 1 == stop_after
            return learn(microbatches, should_stop=should_stop)

        loop.trainer.step = stopping  # type: ignore[assignment]
        try:
            return loop.fit()
        finally:
            loop.close()


def _weights(output: Path) -> dict[str, torch.Tensor]:
    with whole_model(output) as (model, _):
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _trace(output: Path) -> list[dict[str, Any]]:
    records = read_metrics(output / METRICS_NAME)
    return [without_speed(record) for record in records if "loss" in record]


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken")
    run_ranks(1, _train, recipe, output, None, {})
    return output


def _skipped(output: Path) -> list[int]:
    return [record["step"] for record in _trace(output) if record["skipped"]]


@pytest.mark.slow
def test_a_stop_within_bad_steps_changes_nothing(
    recipe: Path, unbroken: Path, tmp_path: Path
) -> None:
    bad = _skipped(unbroken)
    assert 0 < len(bad) < NUM_STEPS, bad
    (state,) = run_ranks(1, _train, recipe, tmp_path, bad[0], {})
    assert (state.step, state.bad_steps) == (bad[0], 1)
    assert Manifest.read(resolve_checkpoint(tmp_path)).bad_steps == 1
    run_ranks(1, _train, recipe, tmp_path, None, {})
    assert _trace(tmp_path) == _trace(unbroken)
    ours, theirs = _weights(tmp_path), _weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_passes_over_the_same_steps(
    layout: str, recipe: Path, unbroken: Path, tmp_path: Path
) -> None:
    world_size, parallel = LAYOUTS[layout]
    states = run_ranks(world_size, _train, recipe, tmp_path, None, parallel)
    assert len(set(states)) == 1
    assert _skipped(tmp_path) == _skipped(unbroken)
    for ours, theirs in zip(_trace(tmp_path), _trace(unbroken), strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert (ours["grad_norm"] is None) == (theirs["grad_norm"] is None) == ours["skipped"]


def _events(output: Path) -> dict[int, dict[str, Any]]:
    records = read_metrics(output / METRICS_NAME)
    return {record["step"]: record for record in records if record.get("event") == "bad_step"}


def _samples(recipe: Path) -> list[tuple[list[str], list[str]]]:
    """Of each step: all that it reads, and what of it has no finite loss; a sample a pass."""
    config, samples, position = load_run([recipe], {"data.workers": 0}), [], 0
    layout = Layout(tensor=1, pipeline=1, data=1)
    with training_data(config, layout, layout.coordinates(0)) as data:
        for _ in range(NUM_STEPS):
            step, names = data.step(position), data.names(position)
            passes = zip(step.microbatches, names, strict=True)
            bad = [name for batch, (name,) in passes if _is_bad(batch.labels)]
            samples.append(([name for (name,) in names], bad))
            position = step.samples_seen
    return samples


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pipeline 2", "data 2"])
def test_samples_without_a_finite_loss_are_named(layout: str, recipe: Path, tmp_path: Path) -> None:
    """By the ranks that know them, which need not be the first."""
    world_size, parallel = LAYOUTS[layout]
    run_ranks(world_size, _train, recipe, tmp_path, None, parallel, in_loss=True)
    events = _events(tmp_path)
    assert list(events) == _skipped(tmp_path)
    for step, (_, bad) in enumerate(_samples(recipe), start=1):
        assert sorted(bad) == sorted(events[step]["samples"] if step in events else [])
        for name in bad:
            assert name in events[step]["message"]


def test_all_samples_are_recorded_where_the_gradient_alone_is_bad(
    recipe: Path, unbroken: Path
) -> None:
    events, samples = _events(unbroken), _samples(recipe)
    assert list(events) == _skipped(unbroken)
    for step, event in events.items():
        assert sorted(event["samples"]) == sorted(samples[step - 1][0])
        assert f"samples {4 * step - 4} to {4 * step - 1} of the run" in event["message"]


def _no_such_number(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.slow
def test_a_rate_that_destroys_the_model(recipe: Path, tmp_path: Path) -> None:
    options = ("--optimizer.lr", "1e30", "--optimizer.decay", "constant", "--train.keep_last", 1)
    command = ("--config", recipe, "--train.output", tmp_path, "--train.save_every", 1, *options)
    run = train(*command, "--ranks", 1, "--train.steps", 2)
    assert run.code == ExitCode.OK, run.err
    assert "Traceback" not in run.err
    run = train(*command, "--ranks", 1, "--train.steps", 9)
    assert run.code == ExitCode.USER_ERROR, run.err
    assert "3 steps in a row up to step" in run.err
    assert len(whole_checkpoints(tmp_path)) == 1
    assert all(weight.isfinite().all() for weight in _weights(tmp_path).values())
    for line in (tmp_path / METRICS_NAME).read_text().splitlines():
        json.loads(line, parse_constant=_no_such_number)

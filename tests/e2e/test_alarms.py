"""What looks wrong in a whole run is said, recorded and, where copies differ, ends it."""

import io
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.config.load import load_run
from vila_mc.errors import TrainingError
from vila_mc.flow import Microbatch, StepResult
from vila_mc.observe.console import StepPrinter
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.observe.spans import Span
from vila_mc.parallel.groups import distributed
from vila_mc.topology.layout import Layout
from vila_mc.train.faults import StopRequest
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data

SLOW_RANK = 1


def _run(
    recipe: Path, options: dict[str, Any], prepare: Callable[[TrainingLoop], None]
) -> tuple[str, str]:
    """What this rank prints, and the error that ends its run."""
    config = load_run([recipe], options)
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    printed, error = io.StringIO(), ""
    with (
        training_data(config, layout, layout.coordinates(int(os.environ["RANK"]))) as data,
        distributed(config.parallel, seed=1, timeout_minutes=2) as ranks,
    ):
        loop = TrainingLoop(config, ranks, data, StopRequest())
        for sink in loop.journal.sinks:
            if isinstance(sink, StepPrinter):
                sink.stream = printed
        prepare(loop)
        try:
            loop.fit()
        except TrainingError as raised:
            error = str(raised)
        finally:
            loop.close()
    return printed.getvalue(), error


def _plant_times(loop: TrainingLoop) -> None:
    """The passes of one rank take three times as long as those of the other."""
    seconds = 0.3 if loop.ranks.rank == SLOW_RANK else 0.1
    passes = [Span("forward-compute", 0.0, seconds, {})]
    loop.trainer.spans.end = lambda: (0.4, passes)  # type: ignore[method-assign]


def _slow(recipe: Path, options: dict[str, Any]) -> tuple[str, str]:
    return _run(recipe, options, _plant_times)


@pytest.mark.slow
def test_a_slow_rank_is_named_in_the_line_and_in_the_metrics(recipe: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "train.output": str(tmp_path),
        "train.steps": 8,
        "train.alarms.compare_ranks_every": 2,
    }
    (printed, error), (of_other, _) = run_ranks(2, _slow, recipe, options)
    assert not error
    records = read_metrics(tmp_path / METRICS_NAME)
    (event,) = [record for record in records if "event" in record]
    assert (event["event"], event["step"], event["rank"]) == ("straggler", 4, SLOW_RANK)
    assert event["where"] == f"rank {SLOW_RANK} ({socket.gethostname()})"
    assert (event["value"], event["usual"]) == pytest.approx((300.0, 100.0))
    alarms = [line for line in printed.splitlines() if line.startswith("alarm: ")]
    assert alarms == [f"alarm: step 4: {event['message']}"]
    assert "alarm: " not in of_other


def _plant_flip(loop: TrainingLoop, step: int, *, is_before: bool) -> None:
    """One bit of a norm changes on one rank, just before or after what a step computes."""
    learn = loop.trainer.step

    def flipping(microbatches: Sequence[Microbatch], **options: Any) -> StepResult:
        is_now = loop.state.step + 1 == step and loop.ranks.rank == SLOW_RANK
        norm = loop.trainer.stages[0].language.decoder.final_layernorm.weight
        bits = norm.detach().view(torch.uint8)
        bits[0] ^= int(is_now and is_before)
        result = learn(microbatches, **options)
        bits[0] ^= int(is_now and not is_before)
        return result

    loop.trainer.step = flipping  # type: ignore[method-assign]


def _flipped(recipe: Path, options: dict[str, Any], step: int, is_before: bool) -> tuple[str, str]:
    return _run(recipe, options, lambda loop: _plant_flip(loop, step, is_before=is_before))


FLIPS = {"in step 4": (4, True), "after step 6": (6, False)}


@pytest.mark.slow
@pytest.mark.parametrize("when", FLIPS)
def test_a_copy_that_differs_is_never_saved(when: str, recipe: Path, tmp_path: Path) -> None:
    """Copies are compared in every fourth step, and before a save that is none of them."""
    options: dict[str, Any] = {
        "train.output": str(tmp_path),
        "train.steps": 8,
        "train.save_every": 3,
        "train.check_replicas_every": 4,
    }
    (_, first), (_, second) = run_ranks(2, _flipped, recipe, options, *FLIPS[when])
    assert first == second
    assert first.startswith(
        f"copies of weights differ {when}: language.decoder.final_layernorm.weight is one on "
    )
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000003"]

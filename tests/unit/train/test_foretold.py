"""Steps that take or hold another amount than was foretold are spoken of, once."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.flow import StepResult
from vila_mc.observe.step_times import StepTimes
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.topology.hardware import GPUS
from vila_mc.topology.layout import Layout
from vila_mc.train import journal as journals
from vila_mc.train.foretold import COUNTED, WARM_UP, Foretold, differences
from vila_mc.train.journal import Journal
from vila_mc.train.state import TrainState

RECIPE = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
H100 = "NVIDIA H100 80GB HBM3"
IMAGES = 20
"""Of a step of 4 rows."""
GIB = 2**30


@pytest.fixture(scope="module")
def config() -> RunConfig:
    options = {"model.language.layers": "4", "train.global_batch": "4", "train.micro_batch": "1"}
    layout = {"parallel.tensor": "1", "parallel.sequence": "false", "parallel.pipeline": "2"}
    return load_run([RECIPE], options | layout | {"data.blend": "[{path: none}]"})


@pytest.fixture(scope="module")
def plan(config: RunConfig) -> Plan:
    return plan_of(config, 2, GPUS["h100-80g"], FITTED, Known(images=IMAGES / 4))


@pytest.mark.parametrize(
    ("slower", "fuller", "told"),
    [
        (1.0, 1.0, []),
        (1.19, 1.17, []),
        (0.86, 0.84, []),
        (1.21, 1.0, ["a step takes .* Look for data that come late"]),
        (0.84, 1.0, ["a step takes .* counts something that is not done"]),
        (1.0, 1.18, ["tensors take .* rehearsal"]),
        (1.0, 0.83, ["tensors take .* rehearsal"]),
        (3.0, 0.5, ["a step takes", "tensors take"]),
    ],
)
def test_what_is_off_by_more_than_the_band(
    slower: float, fuller: float, told: Sequence[str], plan: Plan
) -> None:
    lines = list(differences(plan, slower * plan.time.total, fuller * plan.fullest() / GIB))
    assert len(lines) == len(told)
    assert all(re.match(wanted, line) for wanted, line in zip(told, lines, strict=True)), lines
    assert not any("\n" in line for line in lines)


def test_a_line_has_both_figures(plan: Plan) -> None:
    time, memory = differences(plan, 9.876, 0.5)
    low, high = FITTED.band
    total, held = plan.time.total, plan.fullest() / GIB
    assert time.startswith(
        f"a step takes 9.88 s, but {low * total:.2f} to {high * total:.2f} s were foretold for "
        "H100 SXM 80 GB. "
    )
    assert memory.startswith(
        "tensors take 0.5 GiB at the peak of the fullest rank, but "
        f"{held / high:.1f} to {held / low:.1f} GiB were foretold. "
    )


def told(foretold: Foretold, steps: Sequence[tuple[float, float]]) -> list[str]:
    return [
        line
        for seconds, gib in steps
        for line in foretold.after_step(seconds=seconds, images=IMAGES, gib=gib)
    ]


def test_the_first_steps_and_a_single_slow_one_do_not_count(config: RunConfig, plan: Plan) -> None:
    as_planned = plan.time.total, plan.fullest() / GIB
    steps = [(9e9, 9e9)] * WARM_UP + [(9e9, as_planned[1])] + [as_planned] * (COUNTED - 1)
    assert told(Foretold(config, 2, H100), steps) == []


@pytest.mark.parametrize(
    ("precision", "device"),
    [("bf16", "cpu"), ("bf16", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"), ("fp32", H100)],
)
def test_nothing_is_foretold_of_what_the_planner_does_not_know(precision: str, device: str) -> None:
    given = load_run([RECIPE], {"train.precision": precision, "data.blend": "[{path: none}]"})
    assert told(Foretold(given, 1, device), [(9e9, 9e9)] * 2 * (WARM_UP + COUNTED)) == []


@pytest.mark.parametrize(("device", "lines"), [(H100, 2), ("cpu", 0)])
def test_a_run_says_it_once(
    device: str,
    lines: int,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = StepTimes(*[1e9] * len(StepTimes._fields))
    monkeypatch.setattr(journals, "device_name", lambda _: device)
    monkeypatch.setattr(journals, "on_first_rank", lambda *_: None)  # it opens the sinks
    monkeypatch.setattr(journals, "names_of_ranks", lambda _: ["rank 0", "rank 1"])
    monkeypatch.setattr(journals, "gather_times", lambda *_: ([times] * 2, 0.5))
    ranks: Any = SimpleNamespace(
        device=torch.device("cpu"),
        layout=Layout(1, 2, 1),
        at=Layout(1, 2, 1).coordinates(0),
        is_first=lambda: True,
    )
    nothing: Any = SimpleNamespace(microbatches=())
    journal = Journal(config, ranks, nothing, 0)
    result = StepResult(
        loss=1.0,
        grad_norm=1.0,
        learning_rate=1e-4,
        trained_tokens=100,
        num_images=IMAGES,
        num_samples=4,
        filled=1.0,
        substitutes=0,
        should_stop=False,
        positions=100,
        pairs=100,
    )
    state = TrainState(0, 0)
    for _ in range(3 * (WARM_UP + COUNTED)):
        journal.write_step(state, state, nothing, result, 1e6, [])
    said = "".join(capsys.readouterr())
    assert said.count("foretold") == lines
    assert said.count("warning: ") == lines

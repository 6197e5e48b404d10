"""The learning rate of a step, and what is said when a resumed run does not go on with it."""

from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.run import RunConfig
from vila_mc.train.optimizer import jump_of_the_rate, rate_of


def _run(steps: int, **optimizer: Any) -> RunConfig:
    return tiny_run(
        optimizer={"lr": 1e-3, "warmup_fraction": 0.1} | optimizer, train={"steps": steps}
    )


def test_the_rate_of_a_step() -> None:
    run = _run(100, min_lr=1e-5)
    assert rate_of(run, 1) == pytest.approx(1e-4)
    assert rate_of(run, 10) == pytest.approx(1e-3)
    assert rate_of(run, 100) == pytest.approx(1e-5)
    assert rate_of(_run(1), 1) == 0.0


@pytest.mark.parametrize(
    ("before", "now", "step", "said"),
    [
        (_run(100), _run(200), 100, "from 0.00e+00 in step 100 to 5.78e-04"),  # a finished run
        (_run(100), _run(100, lr=1e-2), 50, "from 5.87e-04 in step 50 to 5.7"),
        (_run(100, decay="constant"), _run(100), 99, "from 1.00e-03 in step 99 to 0.00e+00"),
        (_run(100), _run(100), 50, None),
        (_run(100), _run(101), 50, None),
        (_run(100, decay="constant"), _run(1000, decay="constant"), 100, None),
    ],
)
def test_a_jump_is_said(before: RunConfig, now: RunConfig, step: int, said: str | None) -> None:
    line = jump_of_the_rate(before, now, step)
    assert (line is None) == (said is None)
    assert line is None or (said in line and "train.steps and optimizer.*" in line)

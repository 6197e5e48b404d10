"""What is traced of a run; tests/e2e/test_figures.py has the traces themselves."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.train.tracing import Tracing


@pytest.mark.parametrize(
    ("steps", "after", "is_warned"),
    [([10, 12], 0, True), ([2, 3], 3, True), ([2, 3], 2, False), ([4, 9], 0, False)],
)
def test_steps_that_a_run_does_not_have_are_warned_of(
    steps: list[int], after: int, is_warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(train={"steps": 4, "trace_steps": steps})
    ranks: Any = SimpleNamespace(is_first=lambda: True)
    spans: Any = None
    Tracing(config, ranks, spans, after)
    said = f"train.trace_steps is {steps}, and this run has steps {after + 1} to 4"
    assert (said in "".join(capsys.readouterr())) == is_warned

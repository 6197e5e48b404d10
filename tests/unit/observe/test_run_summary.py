"""What is read of a run's metrics, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from vila_mc.errors import DataError
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.observe.run_summary import read_run, summary
from vila_mc.observe.thinned import Record


def _step(step: int, loss: float | None, **changes: Any) -> Record:
    return {
        "step": step,
        "loss": loss,
        "samples": 8,
        "trained_tokens": 100,
        "step_ms": 500.0,
        "skipped": loss is None,
        "substitutes": 0,
        **changes,
    }


def _validation(step: int, loss: float | None) -> Record:
    return {"step": step, "validation_loss": loss, "validation_ms": 1000.0}


def _write(folder: Path, records: list[Record], end: str = "") -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / METRICS_NAME).write_text(lines + end)
    return folder


def _run(training: list[float], validation: dict[int, float]) -> list[Record]:
    records = []
    for step, loss in enumerate(training, start=1):
        records.append(_step(step, loss))
        if step in validation:
            records.append(_validation(step, validation[step]))
    return records


@pytest.mark.parametrize(
    "end",
    [
        '{"step": 4, "lo',
        "\0" * 64,
        "[" * 100_000,
        "7\n[]\n{}\n",
        '{"step": "four"}\n',
        '{"step": 4, "loss": NaN, "samples": "many", "extra": [1]}',
    ],
)
def test_a_torn_or_foreign_end_is_passed_over(end: str, tmp_path: Path) -> None:
    records = read_run(_write(tmp_path, [_step(step, 1.0) for step in (1, 2, 3)], end))
    assert [record["step"] for record in records[:3]] == [1, 2, 3]
    assert all(record["loss"] is None and record["samples"] is None for record in records[3:])
    assert summary(records)["samples"] == "24"


def test_of_a_step_that_stands_twice_the_later_counts(tmp_path: Path) -> None:
    """As where the metrics of a run and of its resumption were put together by hand."""
    first = [_step(1, 4.0), _step(2, 3.0), _validation(2, 3.5), _step(3, 2.0)]
    second = [_step(2, 3.1), _validation(2, 3.6), _step(3, 2.1), _step(4, 1.0)]
    records = read_run(_write(tmp_path, first + second) / METRICS_NAME)
    assert records == [first[0], *second]


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run: there is no metrics\.jsonl"):
        read_run(tmp_path)
    (tmp_path / METRICS_NAME).mkdir()
    with pytest.raises(DataError, match="is a folder, pipe or device"):
        read_run(tmp_path)
    (tmp_path / METRICS_NAME).rmdir()
    with pytest.raises(DataError, match="holds no record of a step yet"):
        read_run(_write(tmp_path, [], '{"st'))


def test_the_facts_of_a_run() -> None:
    training = [4.0 - 0.05 * step for step in range(40)]
    records = _run(training, {20: 3.5, 40: 3.0})
    records.append(_step(41, None))
    records.append(_step(42, 1.95, substitutes=2))
    assert summary(records) == {
        "steps": "42, the last is 42",
        "samples": "336",
        "trained tokens": "4,200",
        "time": "0:21 in steps, 0:02 in validation",
        "speed": "16.0 samples/s, 200 trained tokens/s",
        "loss": "3.9750 at the beginning, 2.0000 at the end, means of 2 steps",
        "validation loss": "3.0000 after step 40, the best 3.0000 after step 40",
        "skipped steps": "1: 41 changed no weight",
        "substitutes": "2 images could not be decoded",
    }


FALLING = [4.0 - 0.1 * step for step in range(30)]


@pytest.mark.parametrize(
    ("training", "validation", "is_sign"),
    [
        (FALLING, {10: 3.0, 20: 3.3, 30: 3.5}, True),
        (FALLING, {10: 3.5, 20: 3.0, 30: 3.3}, True),
        (FALLING, {10: 3.5, 20: 3.3, 30: 3.0}, False),
        (FALLING, {10: 3.0, 20: 3.01, 30: 3.02}, False),  # hardly
        (FALLING[::-1], {10: 3.0, 20: 3.3, 30: 3.5}, False),  # it learns nothing at all
        (FALLING, {30: 3.5}, False),
    ],
)
def test_over_fitting_is_a_rise_while_training_falls(
    training: list[float], validation: dict[int, float], is_sign: bool
) -> None:
    facts = summary(_run(training, validation))
    assert ("over-fitting" in facts) == is_sign
    if is_sign:
        best = min(validation, key=lambda step: validation[step])
        assert facts["over-fitting"].startswith(f"since step {best} the validation loss rose from")


def test_a_run_without_a_finite_loss() -> None:
    assert summary([_step(1, None), _validation(1, None)])["loss"] == "of no step finite"


def test_validations_alone_say_nothing_of_steps() -> None:
    """As where the figures of the steps were taken out."""
    facts = summary([_validation(10, 3.0), _validation(20, 2.5)])
    assert facts == {
        "steps": "none recorded; the last validation is after step 20",
        "time": "0:02 in validation",
        "validation loss": "2.5000 after step 20, the best 2.5000 after step 20",
    }


def test_a_figure_that_no_step_has_is_left_out() -> None:
    facts = summary([_step(1, 2.0, samples=None), _step(2, 1.5, samples=None)])
    assert "samples" not in facts
    assert facts["trained tokens"] == "200"
    assert facts["speed"] == "200 trained tokens/s"

"""The record of a run survives deaths and resumes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.records import step_record
from vila_mc.observe.metrics import METRICS_NAME, MetricsLog, read_metrics
from vila_mc.observe.record import StepRecord, ValidationRecord


def _record(step: int, loss: float = 1.0) -> StepRecord:
    return step_record(step, loss=loss)


def _write(directory: Path, after_step: int, *steps: int) -> None:
    log = MetricsLog(directory, after_step)
    for step in steps:
        log.write(_record(step))
    log.close()


def _steps(directory: Path) -> list[int]:
    return [record["step"] for record in read_metrics(directory / METRICS_NAME)]


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(_record(1, loss=0.1 + 0.2))
    (read,) = read_metrics(tmp_path / METRICS_NAME)  # flushed
    assert StepRecord(**read) == _record(1, loss=0.1 + 0.2)
    log.close()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, loss: float) -> None:
    path = tmp_path / METRICS_NAME
    path.write_text('{"step": 1, "loss": NaN}\n')  # as written before
    log = MetricsLog(tmp_path, after_step=1)
    log.write(replace(_record(2, loss=loss), loss_by_entry=[0.5, loss]))
    log.close()
    assert read_metrics(path)[1]["loss_by_entry"] == [0.5, None]
    assert [record["loss"] for record in read_metrics(path)] == [None, None]
    assert not any(word in path.read_text() for word in ("NaN", "Infinity"))


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path, 0, 1, 2, 3, 4)
    _write(tmp_path, 2, 3, 4, 5)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_validation_stands_behind_its_step_and_is_dropped_with_it(tmp_path: Path) -> None:
    record = ValidationRecord(
        step=2,
        validation_loss=math.nan,
        validation_tokens=5,
        validation_loss_by_entry=[None],
        validation_ms=1.5,
    )
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write(_record(step))
    log.write_validation(record)
    log.close()
    read = read_metrics(tmp_path / METRICS_NAME)
    assert [each["step"] for each in read] == [1, 2, 2]
    assert (read[2]["validation_loss"], read[2]["validation_tokens"]) == (None, 5)
    _write(tmp_path, 2)
    assert _steps(tmp_path) == [1, 2, 2]
    _write(tmp_path, 1)
    assert _steps(tmp_path) == [1]


def test_a_fresh_run_starts_empty(tmp_path: Path) -> None:
    _write(tmp_path, 0, 1, 2)
    _write(tmp_path, 0)
    assert _steps(tmp_path) == []


def test_what_is_no_whole_record_is_passed_over_and_removed(tmp_path: Path) -> None:
    _write(tmp_path, 0, 1, 2)
    with open(tmp_path / METRICS_NAME, "ab") as file:
        file.write(b'\0\0\n7\n[]\n{"step": "3"}\n{"loss": 3}\n\xff\n{"step": 3, "lo')
    assert _steps(tmp_path) == [1, 2]
    _write(tmp_path, 2, 3)
    assert _steps(tmp_path) == [1, 2, 3]


def test_a_file_that_is_moved_away_is_followed_by_another(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(_record(1))
    (tmp_path / METRICS_NAME).rename(tmp_path / "old.jsonl")
    log.write(_record(2))
    log.close()
    assert _steps(tmp_path) == [2]


def test_nothing_is_begun_in_a_directory_that_took_the_place(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    log = MetricsLog(output)
    output.rename(tmp_path / "moved")
    output.mkdir()
    log.write(_record(1))
    log.close()
    assert not list(output.iterdir())
    assert _steps(tmp_path / "moved") == [1]


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / METRICS_NAME) == []

"""Records that are put together: sums, means and bounds are those of all steps."""

import json
from pathlib import Path

import pytest

from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.observe.run_reader import read_record
from vila_mc.observe.run_summary import summary
from vila_mc.observe.thinned import MOST_KEPT, Record, Thinned, all_steps, skipped_steps, thin


def _step(step: int) -> Record:
    is_peak = step == 501
    return {
        "step": step,
        "loss": None if step % 100 == 0 else 50.0 if is_peak else 2.0,
        "grad_norm": 1.0 + (step == 77),
        "samples": 8,
        "step_ms": 100.0,
        "skipped": step % 100 == 0,
        "peak_memory": step,
    }


@pytest.mark.parametrize("number", [1, 7, 999, 1000, 1001, 4003])
def test_nothing_is_lost_of_what_is_added_up(number: int) -> None:
    every = Thinned(most=16)
    for step in range(1, number + 1):
        every.add(_step(step))
    records = every.records()
    assert len(records) <= 2 * 16
    assert all_steps(records) == number
    assert sum(record["samples"] for record in records) == 8 * number
    assert sum(record["step_ms"] for record in records) == pytest.approx(100 * number)
    assert sum(map(bool, (record["skipped"] for record in records))) <= number // 100 + 1
    assert sum(int(record["skipped"]) for record in records) == number // 100
    assert [record["step"] for record in records] == sorted({r["step"] for r in records})
    assert records[-1]["step"] == records[-1]["peak_memory"] == number
    if number > 501:
        assert max(record["greatest"]["loss"] for record in records) == 50.0
        assert max(record["greatest"]["grad_norm"] for record in records) == 2.0
        assert min(record["least"]["loss"] for record in records) == 2.0
        assert skipped_steps(records[0])[:1] in ([], [100])


def test_a_mean_is_over_the_steps_that_have_the_figure() -> None:
    pair = thin([{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 4.0}], 1)
    assert pair[0]["loss"] == 2.5
    again = thin([*pair, {"step": 4, "loss": 8.0}], 1)
    assert again[0]["num_steps"] == 4
    assert again[0]["loss"] == pytest.approx((3 * 2.5 + 8.0) / 4)


def test_what_is_written_again_is_dropped() -> None:
    every = Thinned(most=4)
    for step in range(1, 12):
        every.add({"step": step})
    every.drop_from(10)
    assert max(record["step"] for record in every.records()) < 10
    every.drop_from(0)
    assert every.records() == []


def test_a_long_run_is_read_in_little_memory(tmp_path: Path) -> None:
    number = 20_000
    with (tmp_path / METRICS_NAME).open("w") as metrics:
        for step in range(1, number + 1):
            metrics.write(json.dumps(_step(step)) + "\n")
    record = read_record(tmp_path)
    assert len(record.steps()) < 2 * MOST_KEPT < number
    facts = summary(record.records())
    assert facts["steps"] == f"{number:,}, the last is {number:,}"
    assert facts["samples"] == f"{8 * number:,}"
    assert facts["skipped steps"].startswith("200: 100, 200, 300, 400, 500, 600, 700, 800 and 192")


def test_a_figure_of_several_and_names_of_ours(tmp_path: Path) -> None:
    line = {"step": 1, "by_entry": [1.0, None], "split": {"forward": 2}, "num_steps": 9, "least": 3}
    (tmp_path / METRICS_NAME).write_text(json.dumps(line) + "\n")
    (step,) = read_record(tmp_path).steps()
    assert step == {"step": 1, "by_entry.0": 1.0, "by_entry.1": None, "split.forward": 2}

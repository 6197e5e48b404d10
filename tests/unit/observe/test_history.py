"""Starts and ends of a run, as its output has them."""

import json
from pathlib import Path

import pytest

from vila_mc.errors import ExitCode
from vila_mc.observe.history import (
    HISTORY_NAME,
    End,
    Start,
    read_history,
    record_end,
    record_start,
    restarts_before,
    restarts_of,
)

START = Start(time=3.0, step=4, steps=30, phase="sft", ranks=2, restart=1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    record_end(tmp_path, ExitCode.FAULT, "rank 1 was killed")
    start, end = read_history(tmp_path)
    assert start == START
    assert isinstance(end, End)
    assert (end.code, end.cause) == (1, "rank 1 was killed")
    assert restarts_of([start, end]) == 1


def test_what_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    path = tmp_path / HISTORY_NAME
    whole = path.read_text()
    lines = ["[]", "3", "{", '{"event": "start"}', '{"event": [], "time": 3}', "[" * 9999]
    path.write_text(
        whole[: len(whole) // 2]
        + "\n"
        + "\n".join(lines)
        + "\n\udcff".encode(errors="surrogatepass").decode(errors="replace")
    )
    record_end(tmp_path, ExitCode.OK)
    (end,) = read_history(tmp_path)
    assert isinstance(end, End)
    assert read_history(tmp_path / "gone") == []


def test_an_output_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    record_end(tmp_path / "gone", ExitCode.OK)
    (tmp_path / HISTORY_NAME).symlink_to(tmp_path / "elsewhere")
    record_end(tmp_path, ExitCode.OK)
    assert not (tmp_path / "elsewhere").exists()


def test_a_cause_is_bounded(tmp_path: Path) -> None:
    record_end(tmp_path, ExitCode.FAULT, "x" * 10_000)
    assert len((tmp_path / HISTORY_NAME).read_text()) < 1000
    assert json.loads((tmp_path / HISTORY_NAME).read_text())["event"] == "end"


@pytest.mark.parametrize(
    ("environment", "restarts"),
    [
        ({}, 0),
        ({"VILA_MC_RESTART": "2"}, 2),
        ({"TORCHELASTIC_RESTART_COUNT": "3"}, 3),
        ({"VILA_MC_RESTART": "?"}, 0),
    ],
)
def test_restarts_of_any_launcher(environment: dict[str, str], restarts: int) -> None:
    assert restarts_before(environment) == restarts

"""Starts and ends of a run, as its output has them."""

import json
from pathlib import Path

import pytest

from tests.support.records import start_record
from vila_mc.errors import ExitCode
from vila_mc.observe import history
from vila_mc.observe.history import (
    HISTORY_NAME,
    End,
    Ends,
    read_history,
    record_start,
    restarts_before,
    restarts_of,
)
from vila_mc.observe.record import StartRecord

START = start_record(step=4, restart=1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    Ends(tmp_path).record(ExitCode.FAULT, "rank 1 was killed")
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
    Ends(tmp_path).record(ExitCode.OK)
    (end,) = read_history(tmp_path)
    assert isinstance(end, End)
    assert read_history(tmp_path / "gone") == []


def test_an_output_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    Ends(tmp_path / "gone").record(ExitCode.OK)
    (tmp_path / HISTORY_NAME).symlink_to(tmp_path / "elsewhere")
    Ends(tmp_path).record(ExitCode.OK)
    assert not (tmp_path / "elsewhere").exists()


def test_of_a_long_history_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(20):
        record_start(tmp_path, start_record(step=step))
    size = (tmp_path / HISTORY_NAME).stat().st_size
    monkeypatch.setattr(history, "_END_BYTES", size // 2)
    steps = [event.step for event in read_history(tmp_path) if isinstance(event, StartRecord)]
    assert steps == list(range(20 - len(steps), 20))
    assert 8 <= len(steps) <= 10


def test_a_cause_is_bounded(tmp_path: Path) -> None:
    Ends(tmp_path).record(ExitCode.FAULT, "x" * 10_000)
    assert len((tmp_path / HISTORY_NAME).read_text()) < 1000
    assert json.loads((tmp_path / HISTORY_NAME).read_text())["event"] == "end"


@pytest.mark.parametrize("was_there", [True, False])
def test_an_end_stays_out_of_what_took_the_place_of_an_output(
    was_there: bool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    if was_there:
        output.mkdir()
    ends = Ends(output)
    output.mkdir(exist_ok=True)
    (output / "metrics.jsonl").touch()
    ends.record(ExitCode.FAULT)
    output.rename(tmp_path / "elsewhere")
    ends.record(ExitCode.OK)
    output.mkdir()
    ends.record(ExitCode.OK)
    assert not list(output.iterdir())
    assert len(read_history(tmp_path / "elsewhere")) == 1


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

"""The progress bar: where it stands, how fast it goes, and that a resumed run counts its own."""

import io
from pathlib import Path

import pytest
import tqdm as tqdm_module

from vila_mc.data.ingest import progress
from vila_mc.data.ingest.rejection import Tally


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would get to see."""
    screen = io.StringIO()

    def shown(**options: object) -> tqdm_module.tqdm:
        return tqdm_module.tqdm(**options | {"disable": False, "file": screen, "mininterval": 0})

    monkeypatch.setattr(progress, "tqdm", shown)
    return screen


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    times = [100.0]
    monkeypatch.setattr(tqdm_module.std, "time", lambda: times[0])
    return times


def test_bar(tmp_path: Path, terminal: io.StringIO, now: list[float]) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(bytes(500_000))
    tally = Tally(seen=1000)
    with progress.Progress(files) as bar:
        bar.show(0, 250_000, tally, 0)  # a run that went on: 1,000 items are not its own
        tally.seen = 3000
        now[0] += 20
        tally.rejected["x"] = 7
        bar.show(1, 250_000, tally, 3_000_000)
        bar.show(1, 9_999_999, tally, 3_000_000)
    last = terminal.getvalue().split("\r")
    middle = next(line for line in last if " 75%" in line)
    assert "750k/1.00M" in middle
    assert "7 rejected, 3 MB written" in middle
    assert " 100 items/s" in middle
    assert "25.0kB/s" in middle
    assert "00:10 left" in middle
    assert "100%" in last[-1]
    assert "37.5kB/s" in last[-1]  # of what this run has read


def test_nothing_is_shown_where_nobody_looks_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with progress.Progress([tmp_path / "a"]) as bar:
        bar.show(0, 1, Tally(seen=1), 1)
    assert capsys.readouterr() == ("", "")

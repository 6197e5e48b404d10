"""Where a run stands, from whatever a run, a kill or a stranger has left."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import REPOSITORY, python_path
from tests.support.records import start_record
from vila_mc.commands.train import main
from vila_mc.errors import DataError, ExitCode
from vila_mc.files import Lock
from vila_mc.observe.history import HISTORY_NAME, Ends, record_start
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.train.standing import lines_of, standing_of

START = start_record(steps=200)


def _step(number: int, **more: Any) -> dict[str, Any]:
    figures = {"loss": 3.0 - number / 100, "step_ms": 500.0, "samples": 8, "skipped": False}
    return {"step": number} | figures | more


def _write(output: Path, steps: int = 100, *more: dict[str, Any]) -> None:
    records = [*(_step(number) for number in range(1, steps + 1)), *more]
    (output / METRICS_NAME).write_text("".join(json.dumps(one) + "\n" for one in records))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    _write(tmp_path, 100, {"step": 99, "event": "loss", "message": "the loss jumps"})
    lock = Lock(tmp_path)
    standing = standing_of(tmp_path)
    lock.release()
    assert (standing.state, standing.phase, standing.step, standing.steps) == (
        *("running", "sft", 100, 200),
    )
    assert (standing.step_ms, standing.samples_per_second, standing.seconds_left) == (500, 16, 50)
    assert standing.loss == pytest.approx(3 - 0.755)
    assert standing.loss_before == pytest.approx(3 - 0.255)
    text = "\n".join(lines_of(standing))
    speed, alarm = "500 ms a step, 16.0 samples/s", "1, the last: the loss jumps"
    for said in ("running", "100 of 200", "falling from", "0:50", speed, alarm):
        assert said in text


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (None, "killed"),
        (ExitCode.OK, "done"),
        (ExitCode.FAULT, "failed"),
        (ExitCode.USER_ERROR, "refused to go on"),
        (ExitCode.REQUEUE, "stopped for its scheduler"),
        (ExitCode.INTERRUPTED, "stopped by a person"),
    ],
)
def test_how_it_ended(code: ExitCode | None, state: str, tmp_path: Path) -> None:
    record_start(tmp_path, START)
    record_start(tmp_path, start_record(step=9, steps=200, restart=1))
    if code is not None:
        Ends(tmp_path).record(code, "rank 1 was killed" if code else "")
    standing = standing_of(tmp_path)
    assert standing.state.startswith(state)
    assert standing.step == 9
    assert (standing.starts, standing.restarts) == (2, 1)
    assert ("rank 1 was killed" in lines_of(standing)[0]) == bool(code)


@pytest.mark.parametrize(
    ("age", "state"), [(60, "starts again by itself"), (9999, "killed before it started again")]
)
def test_a_run_between_two_starts(
    age: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_start(tmp_path, START)
    Ends(tmp_path).record(ExitCode.FAULT, "rank 1 was killed", is_last=False)
    now = time.time() + age
    monkeypatch.setattr(time, "time", lambda: now)
    assert standing_of(tmp_path).state == state


def test_saves_and_validations_take_time_too(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    validation = {"step": 100, "validation_loss": 1.0, "validation_ms": 20_000.0}
    _write(tmp_path, 99, _step(100, save_ms=30_000.0), validation)
    assert standing_of(tmp_path).seconds_left == 100 * (500 + 500) / 1000


@pytest.mark.parametrize(("age", "state"), [(50, "running"), (70, "running, but silent")])
def test_a_run_without_a_step_for_long_is_silent(
    age: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path)
    written = (tmp_path / METRICS_NAME).stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: written + age)
    lock = Lock(tmp_path)
    assert standing_of(tmp_path).state == state
    lock.release()


def test_damage_is_said_and_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / HISTORY_NAME).write_bytes(b"\xff\n{\n[]\n")
    _write(tmp_path, 3, {"step": 4, "loss": None, "skipped": True}, {"step": 5, "loss": "\x1b[2J"})
    with (tmp_path / METRICS_NAME).open("ab") as file:
        file.write(b'{"step": 9, "lo\n[]\n\xff\n{"step": true}\n')
    standing = standing_of(tmp_path)
    assert (standing.state, standing.step, standing.skipped_steps) == ("not running", 5, 1)
    assert standing.checkpoint is not None
    assert "step-00000020 is damaged" in standing.checkpoint


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gone", "is no directory"),
        ("file", "is no directory"),
        ("empty", "is no run"),
        ("foreign", "is no run"),
        ("pipe", "is a folder, pipe or device"),
    ],
)
def test_what_is_no_run_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    output = tmp_path / kind
    if kind == "file":
        output.write_text("")
    elif kind != "gone":
        output.mkdir()
        (output / "notes.txt").write_text("x" * (kind == "foreign"))
        if kind == "pipe":
            (output / METRICS_NAME).mkdir()
    with pytest.raises(DataError, match=said):
        standing_of(output)


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    record_start(tmp_path, START)
    _write(tmp_path)
    program = (
        "import sys; from vila_mc.commands.train import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--status", str(tmp_path), "--json"],
        env={"PYTHONPATH": python_path()},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["step"] == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [HISTORY_NAME, METRICS_NAME]


def test_the_command_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path)
    assert main(["--status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("state       not running\n")

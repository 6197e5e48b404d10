"""Which checkpoints stay, and what is refused before training time is lost."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint import retention
from vila_mc.checkpoint.directories import checkpoint_name, step_of, whole_checkpoints
from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest
from vila_mc.checkpoint.retention import check_room, check_writable, delete_superseded
from vila_mc.config.train import TrainConfig
from vila_mc.errors import ConfigError, SetupError

GIB = 2**30


def _train(output: Path, **options: int) -> TrainConfig:
    return TrainConfig(**{"output": output, "steps": 100, "save_every": 10, **options})


def _make(output: Path, *steps: int) -> None:
    for step in steps:
        directory = output / checkpoint_name(step)
        directory.mkdir()
        (directory / MANIFEST_NAME).write_text("{}")


def _steps(output: Path) -> list[int]:
    return [step_of(path) for path in whole_checkpoints(output)]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 2}, [50, 60]),
        ({"keep_last": 1, "keep_every": 20}, [20, 40, 60]),
        ({"keep_last": 2, "keep_every": 30}, [30, 50, 60]),
        ({"keep_last": 9}, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_what_is_kept(options: dict[str, int], kept: list[int], tmp_path: Path) -> None:
    _make(tmp_path, 10, 20, 30, 40, 50, 60)
    (tmp_path / ".step-00000070.partial").mkdir()
    delete_superseded(_train(tmp_path, **options))
    assert _steps(tmp_path) == kept
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([3.0, 2.0, 2.5, 2.6], [20, 40]),
        ([3.0, 2.0, 2.0, 2.6], [20, 40]),  # the older of equal ones
        ([3.0, 2.0, 2.5, 1.0], [40]),
        ([None, None, 2.5, None], [30, 40]),
        ([None, None, None, None], [40]),
    ],
)
def test_the_best_is_kept(losses: list[float | None], kept: list[int], tmp_path: Path) -> None:
    config = tiny_run(
        data={"validation": [{"path": "held_out"}]},
        train={"output": str(tmp_path), "keep_last": 1, "keep_best": True, "validate_every": 10},
    )
    for number, loss in enumerate(losses, 1):
        directory = tmp_path / checkpoint_name(10 * number)
        directory.mkdir()
        Manifest(
            step=10 * number,
            samples_seen=0,
            config=config,
            layout=None,
            versions={},
            validation_loss=loss,
        ).write(directory)
        delete_superseded(config.train)  # after every save, as in a run
    assert _steps(tmp_path) == kept
    _make(tmp_path, 50)  # damaged: it says nothing of its loss
    delete_superseded(config.train)
    best = [step for step in kept if losses[step // 10 - 1] is not None][:1]
    assert _steps(tmp_path) == [*best, 50]


def test_the_best_needs_a_validation_before_every_save() -> None:
    measured = {"data": {"validation": [{"path": "held_out"}]}}
    with pytest.raises(ConfigError, match=r"keep_best compares .* not measured. Name datasets"):
        tiny_run(train={"keep_best": True})
    with pytest.raises(ConfigError, match=r"save_every 500 is no multiple of .*validate_every 300"):
        tiny_run(train={"keep_best": True, "validate_every": 300}, **measured)
    tiny_run(train={"keep_best": True, "validate_every": 250}, **measured)


def _mark(output: Path, step: int, adapters: Path) -> Path:
    """As ``mark_needed`` marks a checkpoint; those of this file have no manifest that is read."""
    adapters.mkdir(parents=True)
    path = output / f"{checkpoint_name(step)}.needed-by-0123456789ab.json"
    relative = os.path.relpath(adapters, output)
    folder = adapters.parent.stat().st_ino
    values = {"adapters": str(adapters), "relative": relative, "folder": folder}
    path.write_text(json.dumps(values))
    return path


def test_the_base_of_adapters_is_kept_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, adapters = tmp_path / "run", tmp_path / "lora"
    output.mkdir()
    _make(output, 10, 20, 30)
    _mark(output, 10, adapters)
    for step in (30, 40, 50):
        _make(output, *({step} - {30}))
        delete_superseded(_train(output, keep_last=2))
        assert _steps(output) == [10, step - 10, step]
    said = f"kept {output}/step-00000010 beyond train.keep_last, as the base of adapters in"
    assert capsys.readouterr().out == f"{said} {adapters}\n"


def _unmount(disk: Path) -> None:
    """Leave another, empty folder where a disk was."""
    disk.rename(disk.with_name("elsewhere"))
    disk.mkdir()


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (lambda adapters, mark: None, True),
        (lambda adapters, mark: adapters.rmdir(), False),
        (lambda adapters, mark: _unmount(adapters.parent), True),
        (lambda adapters, mark: mark.write_text("{"), True),
        (lambda adapters, mark: _make(adapters, 5), True),  # whose manifest is damaged
        (lambda adapters, mark: mark.unlink(), False),
    ],
    ids=["there", "removed", "disk not mounted", "damaged mark", "damaged adapters", "no mark"],
)
def test_a_mark_counts_while_adapters_may_be_there(
    change: Callable[[Path, Path], object], is_kept: bool, tmp_path: Path
) -> None:
    output, adapters = tmp_path / "run", tmp_path / "disk" / "lora"
    output.mkdir()
    _make(output, 10, 20)
    mark = _mark(output, 10, adapters)
    change(adapters, mark)
    delete_superseded(_train(output, keep_last=1))
    assert _steps(output) == ([10, 20] if is_kept else [20])
    assert mark.exists() == is_kept


def test_both_moved_together_are_still_base_and_adapters(tmp_path: Path) -> None:
    output = tmp_path / "before" / "run"
    output.mkdir(parents=True)
    _make(output, 10, 20)
    _mark(output, 10, tmp_path / "before" / "lora")
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "before").mkdir()
    delete_superseded(_train(tmp_path / "after" / "run", keep_last=1))
    assert _steps(tmp_path / "after" / "run") == [10, 20]


def test_a_mark_that_comes_while_a_checkpoint_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, 10, 20)
    answers = iter([None, tmp_path])
    monkeypatch.setattr(retention, "needed_by", lambda path: next(answers))
    delete_superseded(_train(tmp_path, keep_last=1))
    assert _steps(tmp_path) == [10, 20]
    assert not list(tmp_path.glob(".*"))


def test_keep_every_must_meet_saves() -> None:
    with pytest.raises(ConfigError, match=r"keep_every 15 is not a multiple of train\.save_every"):
        TrainConfig(save_every=10, keep_every=15)


@pytest.fixture
def free_gib(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the free space that the disk reports."""

    def set_free(gib: float) -> None:
        usage = SimpleNamespace(free=gib * GIB)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    assert retention.shutil is shutil  # type: ignore[attr-defined]
    return set_free


@pytest.mark.parametrize(
    ("here", "options", "needed"),
    [
        ((), {"keep_last": 2}, 3),  # two and the one being written
        ((10, 20), {"keep_last": 2}, 1),
        ((10, 20, 30), {"keep_last": 2}, 1),  # all are there until the next is whole
        ((), {"keep_last": 5, "save_every": 100}, 1),  # there will not be more
        ((100,), {"keep_last": 5}, 0),  # the run is over
    ],
)
def test_room_for_those_that_exist_at_a_time(
    here: tuple[int, ...],
    options: dict[str, int],
    needed: int,
    free_gib: Callable[[float], None],
    tmp_path: Path,
) -> None:
    _make(tmp_path, *here)
    train = _train(tmp_path, **options)
    free_gib(needed)
    assert check_room(train, GIB) is None
    if needed:
        free_gib(needed - 0.1)
        with pytest.raises(SetupError, match=rf"this run needs {needed}.00 GiB.*keep_last"):
            check_room(train, GIB)


def test_a_base_of_adapters_makes_no_room(
    free_gib: Callable[[float], None], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    _make(output, 10, 20)
    free_gib(1)
    assert check_room(_train(output, keep_last=2), GIB) is None
    _mark(output, 20, tmp_path / "lora")
    with pytest.raises(SetupError, match=r"this run needs 2\.00 GiB"):
        check_room(_train(output, keep_last=2), GIB)


def test_those_kept_for_good_are_warned_of(
    free_gib: Callable[[float], None], tmp_path: Path
) -> None:
    train = _train(tmp_path, keep_last=1, keep_every=50)
    free_gib(4)
    assert check_room(train, GIB) is None
    free_gib(3.9)
    assert "will need 4.00 GiB there" in check_room(train, GIB)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="file"):
        check_writable(tmp_path / "file" / "out")


def test_a_directory_that_cannot_be_made_was_never_there() -> None:
    with pytest.raises(SetupError, match=r"/proc/output cannot be used: No such file"):
        check_writable(Path("/proc/output"))


def test_a_disk_that_takes_no_file_keeps_none(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(SetupError, match=rf"^{tmp_path} grows larger"):
            check_writable(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())

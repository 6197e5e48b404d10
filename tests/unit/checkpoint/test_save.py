"""A save is whole or not there, and a failure of the disk is said as what it is."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.support.tiny import tiny_microbatches
from tests.unit.checkpoint.conftest import save, trainer
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.checkpoint.disk import Failure
from vila_mc.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.errors import RankError, SetupError
from vila_mc.train.step import Trainer


def _start(trainer: Trainer, step: int) -> PendingSave:
    manifest = Manifest(
        step=step, samples_seen=0, config=trainer.config, layout=None, versions=versions()
    )
    return PendingSave(
        manifest, trainer.ranks, trainer.stages, trainer.optimizer, in_background=True
    )


def _shards(checkpoint: Path) -> dict[str, FileRecord]:
    return {n: f for n, f in Manifest.read(checkpoint).files.items() if n.endswith(".distcp")}


def test_the_manifest_lists_every_other_file(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    manifest = Manifest.read(checkpoint)
    assert manifest.files.keys() == names - {MANIFEST_NAME}
    assert not any("pickle" in name or name == "common.pt" for name in names)


def test_a_background_save_holds_the_state_of_its_start(tmp_path: Path) -> None:
    now, later = tmp_path / "now", tmp_path / "later"
    now.mkdir()
    later.mkdir()
    with trainer(train={"output": str(now)}) as made:
        batches = tiny_microbatches(made.config, 0, 1)
        made.step(batches)
        save(made, step=1)
    with trainer(train={"output": str(later)}) as made:
        made.step(batches)
        pending = _start(made, step=1)
        made.step(batches)  # while it is written
        assert not whole_checkpoints(later)
        assert pending.finish() == whole_checkpoints(later)[-1]
    assert _shards(whole_checkpoints(later)[-1]) == _shards(whole_checkpoints(now)[-1])


@pytest.mark.parametrize("gib", [0.0, 1e-4, 7.5])
def test_what_finds_no_room_is_the_same(gib: float, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing, a part and all of it waits to be written in the background."""
    with trainer(train={"output": str(tmp_path), "save_memory_gib": gib}) as made:
        batches = tiny_microbatches(made.config, 0, 1)
        made.step(batches)
        pending = _start(made, step=1)
        waiting = len(pending._plan._waiting)
        assert (waiting > 10) == (gib > 0)
        made.step(batches)
        found = pending.finish()
    assert _shards(found) == _shards(checkpoint)


def test_a_writer_that_dies_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    with trainer(train={"output": str(tmp_path)}) as made:
        first = save(made, step=1)
        pending = _start(made, step=2)
        os.kill(pending._background._pid, signal.SIGKILL)
        told = r"writes a checkpoint for rank 0 was killed by SIGKILL \(most often .*memory"
        with pytest.raises(RankError, match=told):
            pending.finish()
        assert whole_checkpoints(tmp_path) == [first]
        save(made, step=2)
    assert len(whole_checkpoints(tmp_path)) == 2
    assert not list(tmp_path.glob(".*"))


def test_an_abandoned_save_leaves_no_process(tmp_path: Path) -> None:
    with trainer(train={"output": str(tmp_path)}) as made:
        pending = _start(made, step=1)
        pid = pending._background._pid
        pending.abandon()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not whole_checkpoints(tmp_path)


def _masked(error: OSError) -> RuntimeError:
    """As torch does when a stream cannot be written: its own error while handling the other."""
    try:
        try:
            raise error
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as masking:
        return masking


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space"), "no space left in .*untouched"),
        (_masked(OSError(errno.ENOSPC, "No space")), "no space left in "),
        (_masked(OSError(errno.EDQUOT, "Quota")), "no space left in "),
        (PermissionError(errno.EACCES, "denied", "/x/y"), "/x/y cannot be used: Permission denied"),
        (OSError(errno.EROFS, "Read-only"), "cannot be used: Read-only file system"),
    ],
)
def test_a_disk_error_is_found_behind_others(
    error: OSError | PermissionError | RuntimeError, message: str, tmp_path: Path
) -> None:
    failure = Failure.of(error, tmp_path)
    with pytest.raises(SetupError, match=message):
        raise failure.explained(tmp_path)


def test_a_fault_of_ours_stays_one(tmp_path: Path) -> None:
    failure = Failure.of(RuntimeError("a bug"), tmp_path)
    assert failure.explained(tmp_path) is None
    assert "a bug" in failure.what


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        trainer(train={"output": str(tmp_path / "file")}) as made,
        pytest.raises(SetupError, match=r"file.*cannot be used"),
    ):
        save(made, step=1)


@pytest.mark.parametrize(
    ("is_writing", "is_replaced", "said"),
    [
        (False, False, "is gone: it was removed"),
        (True, False, "is gone: it was removed"),
        (True, True, "was replaced by another directory"),
    ],
)
def test_an_output_that_is_lost_is_said(
    is_writing: bool, is_replaced: bool, said: str, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    with trainer(train={"output": str(output)}) as made:
        pending = _start(made, step=1) if is_writing else None
        output.rename(tmp_path / "elsewhere")
        if is_replaced:
            output.mkdir()
        with pytest.raises(SetupError, match=rf"train\.output {output} {said}"):
            pending.finish() if pending else save(made, step=1)
    assert not is_replaced or not list(output.iterdir())

"""Directories of checkpoints: which one is meant, and where another may be."""

from pathlib import Path

import pytest

from vila_mc.checkpoint import directories
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.errors import CheckpointError


def test_a_closed_folder_beside_the_right_one_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newest(folder: Path) -> Path | None:
        if folder.name == "closed":
            raise PermissionError
        return folder if folder.name == "run" else None

    for name in ("closed", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(directories, "newest_checkpoint", newest)
    with pytest.raises(CheckpointError, match=f"There is one in {tmp_path / 'run'}"):
        resolve_checkpoint(tmp_path)

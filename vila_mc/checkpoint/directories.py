"""Directories of checkpoints: what they are called, which are whole, and which is the newest."""

import re
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vila_mc.checkpoint.manifest import MANIFEST_NAME
from vila_mc.errors import CheckpointError

_STEP_NAME = re.compile(r"step-(\d{8,})")
_FOLDERS_LOOKED_INTO = 100


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def whole_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints in ``directory``, oldest first."""
    return [path for path in _step_directories(directory) if (path / MANIFEST_NAME).is_file()]


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in ``directory``; None if there is none.

    Raises:
        CheckpointError: the newest has lost its manifest. One appears with it, so somebody or a
            disk has damaged it, and to go on from an older one would lose steps without a word.
    """
    found = _step_directories(directory)
    if found and not (found[-1] / MANIFEST_NAME).is_file():
        older = whole_checkpoints(directory)
        instead = f" to go on from {older[-1].name}" if older else ""
        raise CheckpointError(
            f"{found[-1]} is damaged: it has no {MANIFEST_NAME}. Restore that file, or move the "
            f"directory away{instead}."
        )
    return found[-1] if found else None


def _step_directories(directory: Path) -> list[Path]:
    """What is named like a whole checkpoint, oldest first."""
    if not directory.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _STEP_NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def resolve_checkpoint(path: Path) -> Path:
    """``path`` itself if it is a checkpoint, else the newest one in it. Raises CheckpointError."""
    if (path / MANIFEST_NAME).is_file():
        return path
    found = newest_checkpoint(path)
    if found is None:
        raise CheckpointError(
            f"there is no checkpoint in {path}.{_one_below(path)} Name a step-* directory, or the "
            "train.output of the run that wrote one."
        )
    return found


def _one_below(path: Path) -> str:
    """For a message: where one is among the first folders of ``path``, or nothing."""
    with suppress(OSError):  # what cannot be looked into is no help
        for folder in sorted(islice(path.iterdir(), _FOLDERS_LOOKED_INTO)):
            with suppress(OSError):
                if folder.is_dir() and newest_checkpoint(folder) is not None:
                    return f" There is one in {folder}."
    return ""


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint directory."""
    return int(path.name.removeprefix("step-"))

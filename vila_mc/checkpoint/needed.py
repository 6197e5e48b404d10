"""Marks beside checkpoints that adapters elsewhere need, so that their own runs keep them.

DIRECTORY/step-00000120.needed-by-3f2a9c41d07e.json     one for each directory of adapters

A mark counts for as long as those adapters are there and name that checkpoint. One whose adapters
were removed is removed, too, when a run would delete the checkpoint; but not where the folder that
they lay in is another now, as where its disk is not mounted.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.errors import CheckpointError, say
from vila_mc.files import write_json
from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign

_LARGEST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Mark:
    """Who needs a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    adapters: str
    """The directory that their checkpoints are in."""
    relative: str
    """The same, seen from that of the checkpoint: where both have moved."""
    folder: int
    """The inode of the folder that they lie in."""


def mark_needed(base: Path, output: Path) -> None:
    """Mark a checkpoint as the base of adapters in ``output``; say so in one line if that fails.

    A checkpoint that no run wrote needs no mark: none goes on in its directory.

    Raises:
        CheckpointError: the checkpoint has been deleted meanwhile.
    """
    if Manifest.read(base).layout is None:
        return
    base, output = base.absolute(), output.absolute()
    try:
        inode = output.parent.stat().st_ino
        mark = _Mark(str(output), os.path.relpath(output, base.parent), inode)
        write_json(_mark_of(base, output), asdict(mark))
    except OSError as error:
        say(
            f"warning: {base} cannot be marked as the base of adapters ({error.strerror}): a run "
            "that goes on in its directory would delete it like any other. Start from a copy, or "
            "give that run train.keep_every."
        )
    Manifest.read(base)  # whoever deletes it looks for marks before and afterwards


def needed_by(checkpoint: Path) -> Path | None:
    """Adapters that a checkpoint is the base of; None if it is of none. Spent marks are removed."""
    for path in sorted(checkpoint.parent.glob(f"{checkpoint.name}.needed-by-*.json")):
        try:
            mark = parse_foreign(read_foreign(path, _LARGEST_BYTES), TypeAdapter(_Mark))
        except (OSError, ForeignFileError):
            return path  # who wrote it is not known, but somebody has
        if (adapters := _adapters(mark, checkpoint)) is not None:
            return adapters
        path.unlink(missing_ok=True)
    return None


def _mark_of(base: Path, output: Path) -> Path:
    who = hashlib.sha256(str(output).encode()).hexdigest()[:12]
    return base.with_name(f"{base.name}.needed-by-{who}.json")


def _adapters(mark: _Mark, checkpoint: Path) -> Path | None:
    """Where the adapters of a mark are or may be; None if they are gone, or need it no more."""
    places = (Path(mark.adapters), (checkpoint.parent / mark.relative).resolve())
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return found if _still_need(found, checkpoint) else None
    folder = places[0].parent
    is_same = folder.is_dir() and folder.stat().st_ino == mark.folder
    return None if is_same else places[0]


def _still_need(adapters: Path, checkpoint: Path) -> bool:
    try:
        newest = newest_checkpoint(adapters)
        if newest is None:
            return True  # they have not been saved yet
        record = Manifest.read(newest).base
    except CheckpointError:
        return True
    places = () if record is None else (Path(record.path), newest / record.relative)
    return any(place.resolve() == checkpoint.resolve() for place in places)

"""A directory that appears whole or not at all, and never over somebody's files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vila_mc.errors import CheckpointError

MANIFEST = "vila_export.json"
"""Lists the files of an export: what may be replaced, and nothing else."""


@contextmanager
def output_directory(output: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A directory to fill, which becomes ``output`` at the end and replaces an earlier export.

    Args:
        output: where it goes.
        about: what the manifest says besides the list of files.

    Raises:
        CheckpointError: something that is not an export stands at ``output``.
    """
    _check_replaceable(output)
    partial = output.with_name(f".{output.name}.partial")
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_json(partial / MANIFEST, about | {"files": sorted([*_files(partial), MANIFEST])})
        _replace(partial, output)
    finally:
        _remove(partial)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _files(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _check_replaceable(output: Path) -> None:
    """Refuse to write over anything but an export of ours."""
    if not output.exists() and not output.is_symlink():
        return
    advice = "Choose another directory, or remove it yourself."
    if output.is_symlink() or not output.is_dir():
        raise CheckpointError(f"{output} exists and is not a directory. {advice}")
    present = _files(output)
    if not present:
        return
    if MANIFEST not in present:
        raise CheckpointError(f"{output} holds files that no export wrote. {advice}")
    try:
        ours = set(json.loads((output / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{output / MANIFEST} is damaged. {advice}") from None
    if foreign := sorted(present - ours):
        raise CheckpointError(
            f"{output} holds {foreign[0]}, which no export wrote. Move it away, or choose another "
            "directory."
        )


def _replace(partial: Path, output: Path) -> None:
    """Put the finished directory in place; the old one stays if that fails."""
    if not output.exists():
        partial.rename(output)
        return
    old = output.with_name(f".{output.name}.old")
    _remove(old)
    output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        old.rename(output)
        raise
    _remove(old)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)

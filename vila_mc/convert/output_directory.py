"""A directory that appears whole or not at all, and never over somebody's files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vila_mc.errors import CheckpointError
from vila_mc.files import whole_directory, write_json

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
    with whole_directory(output) as partial:
        yield partial
        write_json(partial / MANIFEST, about | {"files": sorted([*_files(partial), MANIFEST])})


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

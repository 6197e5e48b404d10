"""The files that a user names."""

import os
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

from vila_mc.errors import DataError

MOST_FILES = 100_000
"""Files of a folder. Each takes a line of the manifest; more of them belong in an archive."""


def expand_inputs(
    patterns: Iterable[str], option: str = "input", endings: Sequence[str] = ()
) -> list[Path]:
    """Files that paths and glob patterns name, sorted within each pattern.

    Args:
        patterns: what the user gave.
        option: the parameter that they are, for messages.
        endings: of the files that a folder stands for; without them folders are refused.

    Raises:
        DataError: a pattern matches no file, or what is none: a pipe, a device, a link to nothing;
            or a file is named more than once, be it by another name.
    """
    files: list[Path] = []
    for pattern in patterns:
        is_path = os.path.lexists(pattern)
        found = [pattern] if is_path else sorted(glob(pattern, recursive=True))
        if "**" in pattern:  # which goes into folders by itself
            found = [path for path in found if not os.path.isdir(path)]
        if not found:
            raise DataError(f"no file matches {pattern}. Check the path.", option=option)
        for path in found:
            files += _files_of(Path(path), option, endings)
    first: dict[tuple[int, int], Path] = {}
    for file in files:
        found_at = file.stat()  # one file may have several names
        other = first.setdefault((found_at.st_dev, found_at.st_ino), file)
        if other is not file:
            is_named = f"{file} is named {files.count(file)} times"
            names = is_named if other == file else f"{other} and {file} are one file"
            raise DataError(f"{names}. Name it once.", option=option)
    return files


def files_below(folder: Path) -> list[Path]:
    """All files and links below a folder, in the order of their paths; no link is followed.

    Raises:
        DataError: there are more than ``MOST_FILES``.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [Path(parent, name) for name in (*names, *links)]
        if len(found) > MOST_FILES:
            raise DataError(
                f"{folder} holds more than {MOST_FILES:,} files. Put them into .tar archives, "
                "which are read in place."
            )
    return sorted(found)


def _files_of(path: Path, option: str, endings: Sequence[str]) -> list[Path]:
    if path.is_dir():
        return _of_folder(path, option, endings)
    if path.is_file():
        return [path]
    if path.exists():
        raise DataError(
            f"{path} is a pipe or a device. Save what it gives in a file.", option=option
        )
    raise DataError(f"{path} is a link to nothing. Check the path.", option=option)


def _of_folder(folder: Path, option: str, endings: Sequence[str]) -> list[Path]:
    if not endings:
        raise DataError(
            f"{folder} is a folder. Name its files, such as '{folder}/*'.", option=option
        )
    files = [
        file
        for file in files_below(folder)
        if file.name.lower().endswith(tuple(endings)) and file.is_file() and not file.is_symlink()
    ]
    if not files:
        raise DataError(
            f"{folder} holds no file that ends in {', '.join(endings)}. Check the path.",
            option=option,
        )
    return files

"""The files that a user names."""

from collections.abc import Iterable
from glob import glob
from pathlib import Path

from vila_mc.errors import DataError


def expand_inputs(patterns: Iterable[str], option: str = "input") -> list[Path]:
    """Files that paths and glob patterns name, sorted within each pattern.

    Args:
        patterns: what the user gave.
        option: the parameter that they are, for messages.

    Raises:
        DataError: a pattern matches no file, or a file is named more than once, be it by
            another name.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files.append(path)
            continue
        matches = map(Path, glob(pattern, recursive=True))
        found = sorted(match for match in matches if match.is_file())
        if not found and path.is_dir():
            raise DataError(
                f"{path} is a folder. Name its files, such as '{path}/*'.", option=option
            )
        if not found:
            raise DataError(f"no file matches {pattern}. Check the path.", option=option)
        files += found
    first: dict[tuple[int, int], Path] = {}
    for file in files:
        found_at = file.stat()  # one file may have several names
        other = first.setdefault((found_at.st_dev, found_at.st_ino), file)
        if other is not file:
            is_named = f"{file} is named {files.count(file)} times"
            names = is_named if other == file else f"{other} and {file} are one file"
            raise DataError(f"{names}. Name it once.", option=option)
    return files

"""Reads the files of tasks: bounded, of a known shape, and with the images there."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.records import RejectionError
from vila_mc.errors import DataError
from vila_mc.flow import RawImage
from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign

_LARGEST = 1 << 30
"""Bytes of a file: VQAv2's annotations are 400 MB, MMBench's images in base64 600 MB."""
_MOST_VALUES = 50_000_000
"""VQAv2's annotations hold 10 million."""


def read_json[KindT](
    data: Path,
    name: str,
    kind: TypeAdapter[KindT],
    largest: int = _LARGEST,
    most_values: int = _MOST_VALUES,
) -> KindT:
    """A JSON file of a task, of at most so many bytes and values. Raises DataError."""
    try:
        return parse_foreign(_content(data, name, largest=largest), kind, most_values)
    except ForeignFileError as error:
        raise DataError(f"{data / name} {error}. Give the file as it was released.") from None


def read_json_lines[KindT](
    data: Path, name: str, kind: TypeAdapter[KindT], hint: str = "Give the file as it was released."
) -> list[KindT]:
    """A JSON Lines file of a task. Raises DataError, which ends with the hint."""
    found = []
    for number, line in enumerate(_content(data, name, hint).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_foreign(line, kind))
        except ForeignFileError as error:
            raise DataError(f"{data / name}:{number} {error}. {hint}") from None
    return require_some(found, data / name, hint)


def read_table(data: Path, name: str, delimiter: str) -> list[list[str]]:
    """Rows of a CSV or TSV file. Raises DataError."""
    csv.field_size_limit(_LARGEST)
    text = io.StringIO(read_text(data, name), newline="")
    try:
        rows = [row for row in csv.reader(text, delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(
            f"{data / name} is damaged: {error}. Give the file as it was released."
        ) from None
    return require_some(rows, data / name)


def read_text(data: Path, name: str) -> str:
    """A text file of a task. Raises DataError."""
    try:
        return _content(data, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{data / name} is not text in UTF-8: {error}.") from None


def only_file(data: Path, pattern: str) -> str:
    """The one file of a pattern, relative to the data. Raises DataError: none or several."""
    found = sorted(path.relative_to(data).as_posix() for path in data.glob(pattern))
    if len(found) != 1:
        raise DataError(
            f"{data} holds {len(found) or 'no'} file{'s' * (len(found) != 1)} {pattern}, where one "
            "is expected. Put the task's file there as it was released."
        )
    return found[0]


class TaskImages:
    """The folder of a task's images.

    Raises:
        DataError: it is not there.
    """

    def __init__(self, data: Path, *names: str, follow_links: bool = False) -> None:
        found = [data / name for name in names if (data / name).is_dir()]
        if not found:
            raise DataError(
                f"{data} holds no folder {' or '.join(names)}. Put the task's images there."
            )
        self._folder = ImageFolder(found[0], follow_links)

    def has(self, name: str) -> bool:
        """Whether an image is there. Raises DataError: its name leads out of the folder."""
        try:
            return self._folder.has(name)
        except RejectionError as error:
            raise DataError(f"{self._folder.root}: {error}.") from None

    def find(self, name: str) -> RawImage:
        """An image. Raises DataError: it is not there, or leads out of the folder."""
        if self.has(name):
            return self._folder.find(name)
        raise DataError(
            f"{self._folder.root} lacks {name}, which the task asks about. Unpack its images whole."
        )


def require_some[ItemT](
    items: Iterable[ItemT], where: Path, hint: str = "Give the files as released."
) -> list[ItemT]:
    """The items as a list. Raises DataError: there are none."""
    found = [*items]
    if not found:
        raise DataError(f"{where} holds no question of this task. {hint}")
    return found


def _content(
    data: Path, name: str, hint: str = "Give the file as it was released.", largest: int = _LARGEST
) -> bytes:
    try:
        return read_foreign(data / name, largest)
    except FileNotFoundError:
        raise DataError(
            f"{data} holds no {name}. Put the task's file there as it was released."
        ) from None
    except OSError as error:
        raise DataError(f"{data / name} cannot be read: {error}.") from None
    except ForeignFileError as error:
        raise DataError(f"{data / name} {error}. {hint}") from None

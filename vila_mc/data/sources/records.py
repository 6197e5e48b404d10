"""Raw files as a stream of records, each with its place, good or rejected.

JSON Lines files (``.jsonl``, also ``.jsonl.gz``) hold one object a line. A ``.json`` file holds one
array of objects, which is decoded element by element, so that its size does not matter.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from vila_mc.errors import DataError
from vila_mc.flow import ImagePart, RawSample

_READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot become a sample."""

    file: str
    line: int
    """Line of a JSON Lines file, or element of a JSON array, from 1."""
    reason: str
    """Kind of fault, the same words for every record with it."""
    detail: str
    """What it was in this record."""

    def describe(self) -> str:
        """One line for a message: place, reason, detail."""
        return f"{self.file}:{self.line}: {self.reason}: {self.detail}"


class RejectionError(Exception):
    """Raised while a record is read; its place is added by the one who knows it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


Record = dict[str, Any]
Parse = Callable[[Record, str], RawSample]
"""From one record and its origin (``file:line``) to a sample; raises RejectionError."""


def read_samples(files: Sequence[Path], parse: Parse) -> Iterator[RawSample | Rejected]:
    """Every record of ``files`` in order, as a sample or with the reason why it is none.

    Raises:
        DataError: a file is missing, unreadable, or damaged beyond the record at hand.
    """
    for file in files:
        for line, record in read_records(file):
            if isinstance(record, RejectionError):
                yield Rejected(str(file), line, record.reason, record.detail)
                continue
            try:
                yield parse(record, f"{file}:{line}")
            except RejectionError as error:
                yield Rejected(str(file), line, error.reason, error.detail)


def read_records(file: Path) -> Iterator[tuple[int, Record | RejectionError]]:
    """(line or element number from 1, object or what is wrong with it) for each record of a file.

    Raises:
        DataError: the file is missing, unreadable, or not in the format that its name says.
    """
    try:
        if file.suffix == ".json":
            with file.open(encoding="utf-8") as text:
                yield from _read_array(text, file)
        elif file.suffix == ".gz":
            with cast(BinaryIO, gzip.open(file, "rb")) as stream:
                yield from _read_lines(stream)
        else:
            with file.open("rb") as stream:
                yield from _read_lines(stream)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason}. Convert it to UTF-8.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file: {error}. Copy it again.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def require_string(record: Record, key: str) -> str:
    """The text under ``key``. Raises RejectionError when it is missing, no text, or blank."""
    if key not in record:
        raise RejectionError("missing key", f"there is no {key!r} among {', '.join(record)}")
    value = record[key]
    if not isinstance(value, str):
        raise RejectionError("not a text", f"{key!r} holds a {type(value).__name__}")
    if not value.strip():
        raise RejectionError("empty text", f"{key!r} is blank")
    return value


def image_part(folder: Path, name: object) -> ImagePart:
    """The image ``name`` in ``folder``. Raises RejectionError for a name that leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise RejectionError("bad image name", f"{name!r} is not a file name")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RejectionError("bad image name", f"{name!r} leads out of the image folder")
    return ImagePart(folder / name, name)


def _read_lines(stream: BinaryIO) -> Iterator[tuple[int, Record | RejectionError]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield number, _as_record(json.loads(line))
        except UnicodeDecodeError as error:
            yield number, RejectionError("not UTF-8", error.reason)
        except (ValueError, RecursionError) as error:
            yield number, RejectionError("not JSON", str(error))


def _as_record(value: object) -> Record | RejectionError:
    if isinstance(value, dict):
        return value
    return RejectionError("not an object", f"the record is a {type(value).__name__}")


def _read_array(text: TextIO, file: Path) -> Iterator[tuple[int, Record | RejectionError]]:
    """Decode one element after the other, holding little more than the element at hand."""
    decoder = json.JSONDecoder()
    buffer = text.read(_READ_SIZE).lstrip("\ufeff \t\r\n")
    if not buffer.startswith("["):
        raise DataError(f"{file} does not hold a JSON array. Rename it to .jsonl if it is lines.")
    position, number = 1, 0
    while True:
        position = _skip(" \t\r\n", buffer, position)
        if buffer.startswith("]", position):
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
            end = _skip(" \t\r\n", buffer, end)
            is_complete = buffer.startswith((",", "]"), end)
        except (ValueError, RecursionError):
            is_complete = False
        if is_complete:
            number += 1
            yield number, _as_record(value)
            position = end + buffer.startswith(",", end)
            continue
        more = text.read(max(_READ_SIZE, len(buffer) - position))
        if not more:
            raise DataError(
                f"{file} is damaged or cut off after element {number} of its array. Repair it, or "
                "convert it to JSON Lines, where a bad record harms only itself."
            )
        buffer, position = buffer[position:] + more, 0


def _skip(characters: str, text: str, position: int) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position

"""Files of JSON records, whatever they are packed in: each record with its place, or what is wrong.

JSON Lines files (``.jsonl``, also ``.jsonl.gz``, ``.jsonl.zst`` and ``.zip`` archives of them) hold
one object a line. A ``.json`` file holds one array of objects, or several one after the other; it
is read element by element, so that its size does not matter. Where a file is damaged, the records
before it count, and the rest is one rejected record.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from vila_mc.data.sources.compressed import DAMAGE, open_gzip, open_zstd, zip_members
from vila_mc.data.sources.file_kinds import HEAD_BYTES, open_regular, refuse_others
from vila_mc.data.sources.image_files import Images
from vila_mc.data.sources.json_array import read_elements
from vila_mc.data.sources.records import (
    NOT_READ,
    Block,
    Record,
    Rejected,
    RejectionError,
    in_blocks,
)
from vila_mc.errors import DataError
from vila_mc.flow import RawSample

LONGEST_RECORD = 64 << 20
"""Bytes of one record. A file without line ends would otherwise fill the memory."""
MOST_VALUES = 1_000_000
"""Values in one record: each takes a hundred bytes once it is decoded, two in the file."""
_READ_SIZE = 1 << 20

Entry = tuple[int | str, bytes | RejectionError, int]
"""(place, raw record or what is wrong, bytes of the file read so far)"""


@dataclass(frozen=True)
class RecordSource:
    """Base of the sources whose records are JSON objects in files."""

    files: Sequence[Path]

    block_records = 32
    """Records a block holds at most. Few, because a record may bring several images."""
    block_bytes = 1 << 20

    readable = "JSON records in .jsonl, .jsonl.gz, .jsonl.zst, .zip or .json files"
    """What its files may be, for messages."""

    def prepared(self, folder: Path) -> Self:
        """See ``Source.prepared``."""
        for file in self.files:
            self.check(file)
        return self

    def check(self, file: Path) -> None:
        """Refuse a file that holds something else than is read here. Raises DataError."""
        refuse_others(file, _head(file), self.readable)

    def blocks(self, file: Path) -> Iterator[Block]:
        """See ``Source.blocks``."""
        return in_blocks(file, read_entries(file), self.block_records, self.block_bytes)

    def samples(self, block: Block) -> Iterator[RawSample | Rejected]:
        """See ``Source.samples``."""
        for place, raw in block.entries:
            try:
                record = decode(raw)
                yield from self.parse(record, block.file, place)
            except RejectionError as error:
                yield error.at(block.file, place)
            except RecursionError:  # decoded, but too deep to be looked at
                yield _too_deep().at(block.file, place)

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample | Rejected]:
        """The samples of one record. Raises RejectionError when there are none."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageRecordSource(RecordSource):
    """Base of the sources whose records name images."""

    images: Images
    """Where the names are looked up."""

    def prepared(self, folder: Path) -> Self:
        """See ``Source.prepared``."""
        return replace(super().prepared(folder), images=self.images.prepared(folder))


def decode(raw: bytes | RejectionError) -> Record:
    """The object that a raw record holds. Raises RejectionError."""
    if isinstance(raw, RejectionError):
        raise raw
    if sum(map(raw.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise RejectionError("too long", f"a record of more than {MOST_VALUES:,} values")
    try:
        value = json.loads(raw, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise RejectionError("not UTF-8", error.reason) from None
    except json.JSONDecodeError as error:  # its own text speaks of line 1, which is no place
        raise RejectionError("not JSON", f"{error.msg} at character {error.pos + 1}") from None
    except ValueError as error:
        raise RejectionError("not JSON", str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise RejectionError("not an object", f"the record is of type {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> Record:
    """An object. Raises RejectionError: a key stands in it twice; one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RejectionError("repeated key", f"{key[:40]!r} stands twice in an object")
    return found


def read_records(file: Path) -> Iterator[Record]:
    """The objects of a file; records that are none are passed over.

    Raises:
        DataError: the file is missing or unreadable, or damaged.
    """
    for place, raw, _ in read_entries(file):
        if isinstance(raw, RejectionError) and raw.reason == "damaged file":
            raise DataError(f"{file} is damaged at {place}: {raw.detail}. Copy it again.")
        try:
            yield decode(raw)
        except RejectionError:
            continue


def read_entries(file: Path) -> Iterator[Entry]:
    """Each record of a file, not decoded yet.

    Raises:
        DataError: the file is missing or unreadable.
    """
    last: tuple[int | str, int] = (0, 0)
    try:
        with open_regular(file) as stream:
            for entry in _reader(file)(stream):
                last = (entry[0], entry[2])
                yield entry
    except DAMAGE as error:
        place = last[0] + 1 if isinstance(last[0], int) else f"after {last[0]}"
        yield place, RejectionError("damaged file", str(error) or "it is cut off"), last[1]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _head(file: Path) -> bytes:
    """The first bytes of what a file holds; empty where it is damaged, which reading will tell."""
    streams = {".gz": open_gzip, ".zst": open_zstd}
    try:
        with open_regular(file) as raw:
            return streams.get(file.suffix, lambda same: same)(raw).read(HEAD_BYTES)
    except DAMAGE:
        return b""
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _reader(file: Path) -> Callable[[BinaryIO], Iterator[Entry]]:
    readers: dict[str, Callable[[BinaryIO], Iterator[Entry]]] = {
        ".json": _read_array,
        ".gz": lambda raw: read_lines(open_gzip(raw), raw),
        ".zst": lambda raw: read_lines(open_zstd(raw), raw),
        ".zip": _read_zip,
    }
    return readers.get(file.suffix, lambda raw: read_lines(raw, raw))


def _read_zip(raw: BinaryIO) -> Iterator[Entry]:
    for prefix, info, stream in zip_members(raw):
        if stream is None:
            detail = f"{info.file_size:,} bytes that are no .jsonl file"
            yield info.filename, RejectionError(NOT_READ, detail, info.file_size), raw.tell()
            continue
        for line, entry, _ in read_lines(stream, raw):
            yield f"{prefix}{line}" if prefix else line, entry, raw.tell()


def read_lines(stream: BinaryIO, raw: BinaryIO) -> Iterator[Entry]:
    """``raw`` is the file beneath a stream that decompresses."""
    number = position = 0
    while line := stream.readline(LONGEST_RECORD + 1):
        number += 1
        position += len(line)
        end = position if stream is raw else raw.tell()
        if len(line) > LONGEST_RECORD:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_READ_SIZE)
                position += len(line)
            yield number, _too_long(), end
        elif not line.isspace():
            yield number, line, end


def _read_array(raw: BinaryIO) -> Iterator[Entry]:
    for number, (element, end) in enumerate(read_elements(raw, LONGEST_RECORD), start=1):
        yield number, _too_long() if element is None else element, end


def _too_deep() -> RejectionError:
    return RejectionError("not JSON", "values are nested too deeply")


def _too_long() -> RejectionError:
    return RejectionError("too long", f"a record of more than {LONGEST_RECORD:,} bytes")

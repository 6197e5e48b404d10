"""Files of JSON records, whatever they are packed in: each record with its place, or what is wrong.

JSON Lines files (``.jsonl``, also ``.jsonl.gz``, ``.jsonl.zst`` and ``.zip`` archives of them) hold
one object a line. A ``.json`` file holds one array of objects, which is decoded element by element,
so that its size does not matter. Where a file is damaged, the records before it count, and the rest
is one rejected record.
"""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import zstandard

from vila_mc.data.sources.file_kinds import HEAD_BYTES, refuse_others
from vila_mc.data.sources.image_files import Images
from vila_mc.data.sources.records import (
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
_READ_SIZE = 1 << 20
_ZSTD_READ_SIZE = 2048
"""Small, because what a hostile file unfolds into comes in one piece."""
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, zstandard.ZstdError)

Entry = tuple[int | str, bytes | RejectionError | Record, int]
"""(place, raw line or decoded element or what is wrong, bytes of the file read so far)"""


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


def decode(raw: bytes | RejectionError | Record) -> Record:
    """The object that a raw record holds. Raises RejectionError."""
    if isinstance(raw, RejectionError):
        raise raw
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except UnicodeDecodeError as error:
            raise RejectionError("not UTF-8", error.reason) from None
        except json.JSONDecodeError as error:  # its own text speaks of line 1, which is no place
            raise RejectionError("not JSON", f"{error.msg} at character {error.pos + 1}") from None
        except (ValueError, RecursionError) as error:
            raise RejectionError("not JSON", str(error)) from None
    if not isinstance(raw, dict):
        raise RejectionError("not an object", f"the record is of type {type(raw).__name__}")
    return raw


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
    """Each record of a file, not decoded where that can wait.

    Raises:
        DataError: the file is missing or unreadable.
    """
    last: tuple[int | str, int] = (0, 0)
    try:
        with file.open("rb") as stream:
            for entry in _reader(file)(stream):
                last = (entry[0], entry[2])
                yield entry
    except _DAMAGE as error:
        place = last[0] + 1 if isinstance(last[0], int) else f"after {last[0]}"
        yield place, RejectionError("damaged file", str(error) or "it is cut off"), last[1]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _head(file: Path) -> bytes:
    """The first bytes of what a file holds; empty where it is damaged, which reading will tell."""
    try:
        with file.open("rb") as stream:
            if file.suffix == ".gz":
                return gzip.GzipFile(fileobj=stream).read(HEAD_BYTES)
            return (_Zstd(stream) if file.suffix == ".zst" else stream).read(HEAD_BYTES) or b""
    except _DAMAGE:
        return b""
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _reader(file: Path) -> Callable[[BinaryIO], Iterator[Entry]]:
    readers: dict[str, Callable[[BinaryIO], Iterator[Entry]]] = {
        ".json": _read_array,
        ".gz": lambda raw: _read_lines(cast(BinaryIO, gzip.GzipFile(fileobj=raw)), raw),
        ".zst": lambda raw: _read_lines(
            cast(BinaryIO, io.BufferedReader(_Zstd(raw), _READ_SIZE)), raw
        ),
        ".zip": _read_zip,
    }
    return readers.get(file.suffix, lambda raw: _read_lines(raw, raw))


class _Zstd(io.RawIOBase):
    """What zstd frames hold. ``ZstdDecompressor.stream_reader`` would take a cut file for whole."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder: Any = None
        self._compressed = self._out = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            self._compressed = self._compressed or self._raw.read(_ZSTD_READ_SIZE)
            if not self._compressed:
                if self._decoder is not None:
                    raise EOFError("it is cut off")
                return 0
            if self._decoder is None:
                self._decoder = zstandard.ZstdDecompressor().decompressobj()
            self._out = self._decoder.decompress(self._compressed)
            self._compressed = self._decoder.unused_data
            if self._decoder.eof:
                self._decoder = None
        taken = self._out[: len(buffer)]
        self._out = self._out[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _read_zip(raw: BinaryIO) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(raw) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".jsonl")]
            if not members:
                raise zipfile.BadZipFile("there is no .jsonl file in it")
            for info in members:
                with archive.open(info) as stream:
                    for line, entry, _ in _read_lines(cast(BinaryIO, stream), raw):
                        place = line if len(members) == 1 else f"{info.filename}:{line}"
                        yield place, entry, raw.tell()
    except (RuntimeError, NotImplementedError) as error:  # a password, or an odd compression
        raise zipfile.BadZipFile(str(error)) from None


def _read_lines(stream: BinaryIO, raw: BinaryIO) -> Iterator[Entry]:
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
            yield number, RejectionError("too long", _TOO_LONG), end
        elif not line.isspace():
            yield number, line, end


_TOO_LONG = f"a record of more than {LONGEST_RECORD:,} bytes"


def _read_array(raw: BinaryIO) -> Iterator[Entry]:
    """Decode one element after the other, holding little more than the element at hand."""
    text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
    decoder = json.JSONDecoder()
    number = 0
    try:
        buffer = text.read(_READ_SIZE).lstrip("\ufeff \t\r\n")
        if not buffer.startswith("["):
            raise EOFError("it does not hold a JSON array; rename it to .jsonl if it is lines")
        position = 1
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
                yield number, value, raw.tell()
                position = end + buffer.startswith(",", end)
                continue
            more = text.read(max(_READ_SIZE, len(buffer) - position))
            if not more or len(buffer) - position > LONGEST_RECORD:
                raise EOFError(f"it is cut off or no JSON after element {number} of its array")
            buffer, position = buffer[position:] + more, 0
    except UnicodeDecodeError as error:
        raise EOFError(f"it is not UTF-8: {error.reason}") from None
    finally:
        text.detach()


def _skip(characters: str, text: str, position: int) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position

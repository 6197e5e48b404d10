"""Files of lines that are compressed or packed: gzip, zstd, zip. All of a file is accounted for."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import zstandard

from vila_mc.data.sources.file_kinds import is_left_by_macos

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, zstandard.ZstdError)
"""What reading a damaged file raises."""
_LONGEST_WINDOW = 128 << 20
"""Bytes that zstd may look back, and has to keep; more takes the zstd program, too, only when it
is told to."""
_READ_SIZE = 1 << 20
_ZSTD_READ_SIZE = 2048
"""Small, because what a hostile file unfolds into comes in one piece: 64 MiB of these bytes."""
_END_RECORD = 22
"""Bytes of the record that ends a zip archive, without its comment."""


def open_gzip(raw: BinaryIO) -> BinaryIO:
    """What gzip members hold."""
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw))


def open_zstd(raw: BinaryIO) -> BinaryIO:
    """What zstd frames hold."""
    return cast(BinaryIO, io.BufferedReader(_Zstd(raw), _READ_SIZE))


def zip_members(raw: BinaryIO) -> Iterator[tuple[str, zipfile.ZipInfo, BinaryIO | None]]:
    """Every file of a zip archive with its bytes, None where it holds no records.

    Yields:
        (what tells its lines from those of others, "" where there are none; the file; its bytes).

    Raises:
        zipfile.BadZipFile: it is damaged, locked with a password, or there is more than one
            archive in the file.
    """
    try:
        with zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
            _refuse_more(raw, archive, members)
            count = sum(map(_holds_records, members))
            if not count:
                raise zipfile.BadZipFile("there is no .jsonl file in it")
            for info in members:
                if _holds_records(info):
                    _require_bounded(info)
                    with archive.open(info) as stream:
                        prefix = f"{info.filename}:" if count > 1 else ""
                        yield prefix, info, cast(BinaryIO, stream)
                elif not info.is_dir():
                    yield "", info, None
    except (RuntimeError, NotImplementedError) as error:  # a password, or an odd compression
        raise zipfile.BadZipFile(str(error)) from None


def _require_bounded(info: zipfile.ZipInfo) -> None:
    """LZMA keeps as much as its stream asks for, up to 4 GiB, and Python sets it no limit."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{info.filename} is packed in another way than zip's usual one")


def _holds_records(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(".jsonl") and not is_left_by_macos(info.filename)


def _refuse_more(raw: BinaryIO, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Python takes the last archive of a file for all of it."""
    before = min((info.header_offset for info in members), default=0)
    size = raw.seek(0, 2)
    after = 0
    if members:
        raw.seek(max(0, size - (1 << 16) - _END_RECORD))
        tail = raw.read()
        found = tail.rfind(b"PK\x05\x06")
        if found >= 0:  # otherwise zipfile has seen more than this
            after = len(tail) - found - _END_RECORD - len(archive.comment)
    if len({info.header_offset for info in members}) < len(members):
        raise zipfile.BadZipFile("several names stand for the same bytes")
    if before > 0 or after > 0:
        raise zipfile.BadZipFile(
            f"{before:,} bytes stand before the archive and {max(0, after):,} after it. Give each "
            "archive a file of its own"
        )


class _Zstd(io.RawIOBase):
    """``ZstdDecompressor.stream_reader`` would take a cut file for whole."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder: Any = None
        self._compressed = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            self._compressed = self._compressed or self._raw.read(_ZSTD_READ_SIZE)
            if not self._compressed:
                if self._decoder is not None:
                    raise EOFError("it is cut off")
                return 0
            self._out = memoryview(self._decompress())
        taken = self._out[: len(buffer)]
        self._out = self._out[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _decompress(self) -> bytes:
        if self._decoder is None:
            limited = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
            self._decoder = limited.decompressobj()
        try:
            out: bytes = self._decoder.decompress(self._compressed)
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise EOFError(
                    f"it was compressed with a window of more than {_LONGEST_WINDOW >> 20} MiB "
                    "(zstd --long); compress it again without"
                ) from None
            raise
        self._compressed = self._decoder.unused_data
        if self._decoder.eof:
            self._decoder = None
        return out

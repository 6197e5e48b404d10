"""Tar archives, read by their headers: where each file lies, so that any process can fetch it.

Only uncompressed archives, whose files can be found without reading all before them; several may
stand in one file, one after the other. Links and devices in an archive are named as not read;
nothing is ever unpacked to the disk.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from vila_mc.data.image_codec import MAX_IMAGE_BYTES
from vila_mc.data.sources.file_kinds import is_left_by_macos, open_regular
from vila_mc.data.sources.records import NOT_READ, RejectionError
from vila_mc.errors import DataError

_SECTOR = 512
_LONGEST_HEADER = 1 << 20
"""Bytes of a long name or of extended attributes. Real ones have a few hundred."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str
    offset: int
    """Where its bytes start in the archive."""
    size: int


@dataclass(frozen=True, slots=True)
class Unread:
    """Something in an archive that is no file of records or images."""

    name: str
    error: RejectionError


def scan(file: Path) -> Iterator[Member | Unread | RejectionError]:
    """Every file of an archive, in order; an error last where the archive is damaged.

    Raises:
        DataError: the archive is missing or may not be read.
    """
    try:
        with open_regular(file) as raw:
            end = 0
            try:
                for member in _scan(raw):
                    if isinstance(member, Member):
                        end = member.offset + member.size
                    yield member
            except (
                tarfile.TarError,
                ValueError,
                OverflowError,
                EOFError,
                RecursionError,  # thousands of long names in a row
            ) as error:
                lost = raw.seek(0, 2) - end
                detail = f"{error}. The last {lost:,} bytes are lost"
                yield RejectionError("damaged file", detail, lost)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _scan(raw: BinaryIO) -> Iterator[Member | Unread]:
    size = raw.seek(0, 2)
    if not size:
        raise EOFError("it is empty")
    start = 0
    while start < size:
        raw.seek(start)
        headers: Any = _Headers(raw)
        archive = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 - it holds but raw
        at = -1
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all
            if info.offset <= at:
                raise EOFError("a header points back")
            at = info.offset
            if not info.isdir():
                yield _member(info, size)
        start = _end_of_archive(raw, archive.offset, size)


def _member(info: tarfile.TarInfo, size: int) -> Member | Unread:
    if info.size < 0 or (info.isreg() and info.offset_data + info.size > size):
        raise EOFError(f"it is cut off within {info.name!r}")
    if is_left_by_macos(info.name):
        return Unread(info.name, RejectionError(NOT_READ, "a file of macOS itself", info.size))
    if not info.isreg() or info.issparse():
        kind = "sparse file" if info.issparse() else "link" if info.linkname else "device"
        return Unread(info.name, RejectionError(NOT_READ, f"it is a {kind}", info.size))
    return Member(info.name, info.offset_data, info.size)


def _end_of_archive(raw: BinaryIO, offset: int, size: int) -> int:
    """Where another archive starts behind the one that ends at ``offset``; ``size`` if none does.

    Raises:
        EOFError: something else stands there. The module takes any header that it cannot read for
            the end, and a single sector of zeros, which a bad disk leaves, too.
    """
    raw.seek(offset)
    zeros = 0
    while (sector := raw.read(_SECTOR)) == bytes(_SECTOR):
        zeros += 1
    if not sector.strip(b"\0") and zeros:
        return size
    if zeros == 1:
        raise EOFError("a header is all zeros")
    if not zeros:
        raise EOFError("a header is damaged, or the archive is cut off")
    try:
        tarfile.TarInfo.frombuf(sector, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        raise EOFError("something that is no archive follows its end") from None
    return offset + zeros * _SECTOR


class _Headers:
    """A file of which no more than a header is read at once, whatever the header before says."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.seek, self.tell = raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise EOFError(f"a header of {size:,} bytes")
        return self._raw.read(size)


class MemberStream(io.RawIOBase):
    """The bytes of a file in an archive, read as they are asked for.

    Args:
        raw: the archive.
        member: the file; it must lie within the archive, as ``scan`` makes sure.
    """

    def __init__(self, raw: BinaryIO, member: Member) -> None:
        self._raw = raw
        self._at, self._end = member.offset, member.offset + member.size

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        self._raw.seek(self._at)
        data = self._raw.read(min(len(buffer), self._end - self._at))
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)


def read_member(file: Path, member: Member) -> bytes:
    """Bytes of a file in an archive. Raises RejectionError."""
    if member.size > MAX_IMAGE_BYTES:
        raise RejectionError("too long", f"{member.name} has {member.size:,} bytes")
    try:
        found = os.stat(file)
        stream = _open(file, found.st_ino, found.st_mtime_ns)
        stream.seek(member.offset)
        data = stream.read(member.size)
    except OSError as error:
        raise RejectionError("unreadable file", f"{file}: {error}") from None
    if len(data) < member.size:
        raise RejectionError("damaged file", f"{file} is cut off within {member.name}")
    return data


@lru_cache(maxsize=1)
def _open(file: Path, inode: int, changed: int) -> BinaryIO:
    """The archive that was read last stays open, unless another has taken its place."""
    return open_regular(file)

"""Tar archives, read by their headers: where each file lies, so that any process can fetch it.

Only uncompressed archives, whose files can be found without reading all before them. Links, devices
and folders in an archive are passed over; nothing is ever unpacked to the disk.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vila_mc.data.images import MAX_IMAGE_BYTES
from vila_mc.data.sources.records import RejectionError
from vila_mc.errors import DataError

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str
    offset: int
    """Where its bytes start in the archive."""
    size: int


def scan(file: Path) -> Iterator[Member | RejectionError]:
    """Every regular file of an archive, in order; an error last where the archive is damaged.

    Raises:
        DataError: the archive is missing or may not be read.
    """
    try:
        with file.open("rb") as raw:
            end = 0
            try:
                for member in _scan(raw):
                    end = member.offset + member.size
                    yield member
            except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
                lost = raw.seek(0, 2) - end
                yield RejectionError("damaged file", f"{error}. The last {lost:,} bytes are lost")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _scan(raw: BinaryIO) -> Iterator[Member]:
    archive = tarfile.open(fileobj=raw, mode="r:")  # noqa: SIM115 - it holds nothing but raw
    size = raw.seek(0, 2)
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all
        if not info.isreg() or info.issparse():
            continue
        if info.size < 0 or info.offset_data + info.size > size:
            raise EOFError(f"it is cut off within {info.name!r}")
        yield Member(info.name, info.offset_data, info.size)
    # The module takes any header that it cannot read for the end.
    raw.seek(archive.offset)
    if raw.read(_SECTOR) != bytes(_SECTOR):
        raise EOFError("a header is damaged, or the archive is cut off")


def read_member(file: Path, member: Member) -> bytes:
    """Bytes of a file in an archive. Raises RejectionError."""
    if member.size > MAX_IMAGE_BYTES:
        raise RejectionError("too long", f"{member.name} has {member.size:,} bytes")
    try:
        stream = _open(file)
        stream.seek(member.offset)
        data = stream.read(member.size)
    except OSError as error:
        raise RejectionError("unreadable file", f"{file}: {error}") from None
    if len(data) < member.size:
        raise RejectionError("damaged file", f"{file} is cut off within {member.name}")
    return data


@lru_cache(maxsize=1)
def _open(file: Path) -> BinaryIO:
    """The archive that was read last stays open."""
    return file.open("rb")

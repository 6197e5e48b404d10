"""Where the images that records name lie: in a folder, or in tar archives."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vila_mc.data.ingest.provenance import describe_files
from vila_mc.data.sources.file_kinds import refuse_no_archive
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.sources.tars import Member, read_member, scan
from vila_mc.errors import DataError
from vila_mc.flow import RawImage

_ENTRY = np.dtype(
    [
        ("key", "<u8"),
        ("check", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("tar", "<u4"),
        ("is_short", "<u4"),
    ]
)
"""A name as 128 bits of its hash, and whether folders were left out of it. 30 million names take
1.2 GB, which is mapped, not loaded."""


class Images(Protocol):
    """Finds images by the names that records give."""

    def find(self, name: object) -> RawImage:
        """The image. Raises RejectionError for what is no name, leads elsewhere, or is missing."""
        ...

    def has(self, name: object) -> bool:
        """Whether the image is there. Raises RejectionError as ``find`` does, but not for that."""
        ...

    def folder(self, name: str) -> list[str]:
        """Names of all files in a folder of them, sorted. Raises RejectionError."""
        ...

    def prepared(self, folder: Path) -> "Images":
        """Ready to find images. ``folder`` is for files of its own. Raises DataError."""
        ...

    def describe(self) -> Any:
        """For the manifest, as JSON takes it: names, not where they lie."""
        ...


def check_name(name: object) -> str:
    """A relative file name. Raises RejectionError for anything else, web addresses included."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise RejectionError("bad image name", f"{str(name)[:80]!r} is not a file name")
    if "://" in name:
        raise RejectionError("bad image name", f"{name[:80]!r} is an address; nothing is fetched")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RejectionError("bad image name", f"{name[:80]!r} leads out of the image folder")
    return name


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images as files in a folder. They are looked for when they are read."""

    root: Path

    def find(self, name: object) -> RawImage:
        """See ``Images.find``."""
        name = check_name(name)
        return RawImage(self.root / name, name)

    def has(self, name: object) -> bool:
        """See ``Images.has``."""
        # Unlike Path.is_file, false for a name that no file system can hold.
        return os.path.isfile(self.root / check_name(name))

    def folder(self, name: str) -> list[str]:
        """See ``Images.folder``."""
        try:
            found = sorted(path.name for path in (self.root / check_name(name)).iterdir())
        except OSError as error:
            raise RejectionError("missing image", f"folder {name}: {error.strerror}") from None
        return [f"{name}/{file}" for file in found]

    def prepared(self, folder: Path) -> "ImageFolder":
        """See ``Images.prepared``."""
        return self

    def describe(self) -> str:
        """See ``Images.describe``."""
        return self.root.resolve().name


@dataclass(frozen=True, slots=True)
class ImageTars:
    """Images in tar archives, found through an index file that ``index_tars`` makes."""

    tars: tuple[Path, ...]
    index: Path | None = None
    """None until ``prepared``."""

    def find(self, name: object) -> RawImage:
        """See ``Images.find``."""
        name = check_name(name)
        found = self._find(name)
        if not found:
            raise RejectionError("missing image", f"{name} is in none of the archives")
        if len(found) > 1 and found[0]["is_short"] == found[1]["is_short"]:
            raise RejectionError("ambiguous image", f"{name} is in the archives more than once")
        member = Member(name, int(found[0]["offset"]), int(found[0]["size"]))
        return RawImage(read_member(self.tars[int(found[0]["tar"])], member), name)

    def has(self, name: object) -> bool:
        """See ``Images.has``."""
        return bool(self._find(check_name(name)))

    def _find(self, name: str) -> list[np.ndarray]:
        assert self.index is not None
        entries = _mapped(self.index)
        key, check = _hash(name)
        first = int(np.searchsorted(entries["key"], key))
        return [
            entry
            for entry in entries[first : first + 2]
            if (int(entry["key"]), int(entry["check"])) == (key, check)
        ]

    def folder(self, name: str) -> list[str]:
        """Archives are found by whole names only. Raises RejectionError."""
        raise RejectionError("missing image", f"{name}: give the names of frames within archives")

    def prepared(self, folder: Path) -> "ImageTars":
        """See ``Images.prepared``."""
        for tar in self.tars:
            refuse_no_archive(tar)
        return index_tars(self.tars, folder / "images.index")

    def describe(self) -> list[dict[str, Any]]:
        """See ``Images.describe``."""
        return describe_files(self.tars)


def index_tars(tars: Sequence[Path], index: Path) -> ImageTars:
    """Write the index of all files in some archives.

    A name may be given as it stands in the archive, or without its folders. Names that several
    files have are good for none of them.

    Args:
        tars: the archives.
        index: the file to write; what is there is overwritten.

    Raises:
        DataError: an archive is missing, may not be read, or is damaged.
    """
    partial = index.with_name(index.name + ".partial")
    index.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as file:
        for number, tar in enumerate(tars):
            np.array(_rows(number, tar), _ENTRY).tofile(file)
    entries = np.fromfile(partial, _ENTRY)
    # Whole names before short ones, which give way to them.
    entries[np.lexsort((entries["is_short"], entries["key"]))].tofile(partial)
    partial.replace(index)
    return ImageTars(tuple(tars), index)


def _rows(number: int, tar: Path) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for member in scan(tar):
        if isinstance(member, RejectionError):
            raise DataError(f"{tar} is damaged: {member.detail}. Copy it again.")
        name = member.name.removeprefix("./")
        place = (member.offset, member.size, number)
        rows.append((*_hash(name), *place, False))
        if "/" in name:
            rows.append((*_hash(name.rpartition("/")[2]), *place, True))
    return rows


def _hash(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


@lru_cache(maxsize=4)
def _mapped(index: Path) -> np.ndarray:
    if index.stat().st_size == 0:
        return np.empty(0, _ENTRY)
    return np.memmap(index, _ENTRY, "r").view(np.ndarray)

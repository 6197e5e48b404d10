"""Where the images that records name lie: in a folder, or in tar archives."""

import base64
import binascii
import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vila_mc.data.image_codec import MAX_IMAGE_BYTES
from vila_mc.data.ingest.provenance import describe_files
from vila_mc.data.sources.file_kinds import open_regular, refuse_no_archive
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.sources.tars import Member, Unread, read_member, scan
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

    def folder(self, name: str) -> list[str]:
        """Names of all files in a folder of them, 2 before 10. Raises RejectionError."""
        ...

    def prepared(self, folder: Path) -> "Images":
        """Ready to find images. ``folder`` is for files of its own. Raises DataError."""
        ...

    def describe(self) -> Any:
        """For the manifest, as JSON takes it: names, not where they lie."""
        ...


_UNDER = ("path", "image", "url", "image_url", "file_name")
"""Keys under which an object names an image, as datasets, ms-swift and OpenAI's format do."""


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """What orders names as people count: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if number % 2 else (0, part) for number, part in enumerate(parts)]


def find_image(images: Images, given: object) -> RawImage:
    """The image that a record gives: by its name, within an object, or as a data: address.

    Raises:
        RejectionError: as ``Images.find``.
    """
    if isinstance(given, dict):
        keys = [key for key in _UNDER if given.get(key) not in (None, "", [], {})]
        if len(keys) != 1:
            raise RejectionError(
                "bad image name", f"{str(given)[:80]} names no image under one of {list(_UNDER)}"
            )
        return find_image(images, given[keys[0]])
    if isinstance(given, str) and given.startswith("data:"):
        return RawImage(_inline(given), "an inline image")
    return images.find(given)


def _inline(address: str) -> bytes:
    kind, comma, data = address.partition(",")
    try:
        if not comma or not kind.endswith(";base64"):
            raise ValueError("it is not in base64")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RejectionError("unusable image", f"{address[:40]!r}: {error}") from None


def read_image(image: RawImage) -> bytes:
    """The file of an image. Raises RejectionError: it is missing, too large, or no file."""
    if isinstance(image.source, bytes):
        return image.source
    try:
        with open_regular(image.source) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except FileNotFoundError:
        raise RejectionError("missing image", f"there is no file {image.source}") from None
    except DataError as error:
        raise RejectionError("missing image", str(error)) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise RejectionError("unreadable image", f"{image.name}: {error}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise RejectionError(
            "unusable image", f"{image.name} has more than {MAX_IMAGE_BYTES:,} bytes"
        )
    return data


def check_name(name: object) -> str:
    """A relative file name in its shortest form, as a folder would find it.

    Raises:
        RejectionError: it is anything else, a web address included.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RejectionError("bad image name", f"{str(name)[:80]!r} is not a file name")
    if "://" in name:
        raise RejectionError("bad image name", f"{name[:80]!r} is an address; nothing is fetched")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RejectionError("bad image name", f"{name[:80]!r} leads out of the image folder")
    return posixpath.normpath(name)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images as files in a folder. They are looked for when they are read."""

    root: Path
    follows_links: bool = False
    """Whether a link in it may lead out of it."""

    def find(self, name: object) -> RawImage:
        """See ``Images.find``."""
        name = check_name(name)
        return RawImage(self._within(name), name)

    def has(self, name: object) -> bool:
        """Whether the image is there. Raises RejectionError as ``find`` does."""
        # Unlike Path.is_file, false for a name that no file system can hold.
        return os.path.isfile(self._within(check_name(name)))

    def folder(self, name: str) -> list[str]:
        """See ``Images.folder``."""
        name = check_name(name)
        try:
            files = sorted(os.listdir(self._within(name)), key=_with_numbers)
        except (OSError, ValueError) as error:
            raise RejectionError("missing image", f"folder {name}: {error}") from None
        return [f"{name}/{file}" for file in files]

    def _within(self, name: str) -> Path:
        path = self.root / name
        if self.follows_links:
            return path
        try:
            is_within = Path(os.path.realpath(path)).is_relative_to(_real(self.root))
        except (OSError, ValueError):  # no file system can hold it: reading will tell
            return path
        if not is_within:
            raise RejectionError(
                "bad image name",
                f"{name[:80]!r} leads out of the image folder by a link; the option follow_links "
                "allows that",
            )
        return path

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
        if isinstance(member, Unread):
            continue
        if isinstance(member, RejectionError):
            raise DataError(f"{tar} is damaged: {member.detail}. Copy it again.")
        name = posixpath.normpath(member.name)
        place = (member.offset, member.size, number)
        rows.append((*_hash(name), *place, False))
        if "/" in name:
            rows.append((*_hash(name.rpartition("/")[2]), *place, True))
    return rows


def _hash(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


@lru_cache(maxsize=4)
def _real(root: Path) -> str:
    return os.path.realpath(root)


def _mapped(index: Path) -> np.ndarray:
    found = index.stat()
    return _map(index, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4)
def _map(index: Path, inode: int, changed: int, size: int) -> np.ndarray:
    """What is mapped stays so, unless another index has taken its place."""
    return np.memmap(index, _ENTRY, "r").view(np.ndarray) if size else np.empty(0, _ENTRY)

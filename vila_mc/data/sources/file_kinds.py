"""Files that are no input, known by their endings and first bytes: refused before any is read."""

from pathlib import Path
from typing import BinaryIO

from vila_mc.errors import DataError
from vila_mc.foreign_files import ForeignFileError, open_foreign

HEAD_BYTES = 512
"""What has to be seen of a file."""

_ENDINGS = {
    ".tar": "a tar archive",
    ".tgz": "a compressed tar archive",
    ".parquet": "a parquet file",
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "a pickle"),
}
_MAGIC = (
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"\xfd7zXZ", "compressed with xz"),
    (0, b"\x89PNG", "an image"),
    (0, b"\xff\xd8\xff", "an image"),
    (0, b"GIF8", "an image"),
    (8, b"WEBP", "an image"),
    (0, b"\xff\xfe", "text in UTF-16"),
    (0, b"\xfe\xff", "text in UTF-16"),
)
_ADVICE = {
    "a tar archive": "The kind pairs reads archives of pairs; those of images are given as images",
    "a compressed tar archive": "Decompress it: archives are read in place",
    "a parquet file": "The kind pairs reads it; else convert it to JSON Lines",
    "an Arrow file": "Convert it to JSON Lines",
    "a zip archive": "Give it the ending .zip if it holds .jsonl files",
    "compressed with gzip": "Give it the ending .gz",
    "compressed with zstd": "Give it the ending .zst",
    "compressed with bzip2": "Decompress it, or compress it with gzip or zstd",
    "compressed with xz": "Decompress it, or compress it with gzip or zstd",
    "an image": "Give the file of records that names it; their folder is given as images",
    "a pickle": "Pickles run code when they are loaded, so none is ever read. Convert it to JSON "
    "Lines with images in a folder, in an environment you can throw away",
    "text in UTF-16": "Convert it to UTF-8",
    "no text": "Give the file of records",
}
_COMPRESSED = (".gz", ".zst")


def open_regular(file: Path) -> BinaryIO:
    """Open a file that has an end; a pipe or a device could keep its reader waiting for ever.

    Raises:
        OSError: it cannot be opened.
        DataError: it is no regular file.
    """
    try:
        return open_foreign(file)
    except ForeignFileError as error:
        raise DataError(f"{file} {error}. Check the path.") from None


def is_left_by_macos(name: str) -> bool:
    """Whether a file of an archive is no file of its maker, but what macOS puts beside them."""
    last = name.rpartition("/")[2]
    return last.startswith("._") or last == ".DS_Store" or name.startswith("__MACOSX/")


def refuse_others(file: Path, head: bytes, readable: str) -> None:
    """Refuse a file that cannot hold JSON records. What is merely damaged is let through.

    Args:
        file: its name says how it is packed.
        head: its first ``HEAD_BYTES``; of .gz and .zst those of what they hold, as far as they do.
        readable: what may be given, for the message.

    Raises:
        DataError: it is an archive, an image, a pickle or other binary data.
    """
    kind = _ENDINGS.get(file.suffix.lower()) or _kind_of(head)
    if kind == "a zip archive" and file.suffix == ".zip":
        return
    if kind == "a tar archive" and file.suffix in _COMPRESSED:
        kind = "a compressed tar archive"
    if kind is None and b"\0" in head and head.lstrip()[:1] not in (b"{", b"["):
        kind = "no text"
    if kind is not None:
        raise DataError(f"{file} is {kind}, not {readable}. {_ADVICE[kind]}.")


def refuse_no_archive(file: Path) -> None:
    """Refuse a .tar that is something else. What is merely damaged is let through.

    Raises:
        DataError: it is compressed, or no archive at all, or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            kind = _kind_of(stream.read(HEAD_BYTES))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None
    if kind not in (None, "a tar archive"):
        raise DataError(
            f"{file} is {kind}, not a plain tar archive. Archives are read in place: decompress it."
        )


def _kind_of(head: bytes) -> str | None:
    return next((kind for at, magic, kind in _MAGIC if head.startswith(magic, at)), None)

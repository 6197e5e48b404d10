"""WebDataset archives, and img2dataset's parquet files that describe them.

Files of an archive that stand side by side and share their name up to the first dot of its last
part are one sample: ``00012.jpg``, ``00012.txt``, ``00012.json``. Other files of a sample are its
metadata, and as little read as other keys of a JSON record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.data.image_codec import ENDINGS
from vila_mc.data.sources.parquet import read_columns
from vila_mc.data.sources.records import NOT_READ, RejectionError
from vila_mc.data.sources.tars import Member, Unread, scan

IMAGES = tuple(ending.removeprefix(".") for ending in ENDINGS)
_NAMED = 5
"""Keys of missing images that a message names."""


@dataclass(frozen=True, slots=True)
class ShardSample:
    """One sample of an archive, not read yet."""

    key: str
    members: dict[str, Member]
    """All its files, by ending in lower case."""
    caption: Any = None
    """From the parquet file, if there is one."""


def read_shard(
    file: Path, caption_keys: Sequence[str]
) -> Iterator[tuple[str, ShardSample | RejectionError, int]]:
    """(key, sample, where it ends in the archive) of ``file``, or of the archive beside a parquet.

    Args:
        file: a .tar or .parquet file.
        caption_keys: columns of a parquet file that captions may stand in; the first it has counts.

    Raises:
        DataError: a file is missing, may not be read, or is no parquet file with captions.
        SetupError: a parquet file is given, but pyarrow is not installed.
    """
    if file.suffix == ".parquet":
        yield from _with_captions(file, caption_keys)
        return
    for key, members, end in _group(file):
        found = members if isinstance(members, RejectionError) else ShardSample(key, members)
        yield key, found, end


def _with_captions(
    file: Path, caption_keys: Sequence[str]
) -> Iterator[tuple[str, ShardSample | RejectionError, int]]:
    captions: dict[str, Any] = {}
    repeated: set[str] = set()
    for key, caption in read_columns(file, "key", caption_keys):
        if str(key) in captions:
            repeated.add(str(key))
        captions[str(key)] = caption
    end = 0
    for key, members, end in _group(file.with_suffix(".tar")):
        caption = captions.pop(key, None)
        if isinstance(members, RejectionError):
            yield key, members, end
        elif caption is None:
            yield key, RejectionError("missing caption", "the parquet file has none for it"), end
        elif key in repeated:
            yield key, RejectionError("repeated key", "the parquet file has it more than once"), end
        else:
            yield key, ShardSample(key, members, caption), end
    if captions:
        names = ", ".join(list(captions)[:_NAMED]) + (", ..." if len(captions) > _NAMED else "")
        detail = f"{len(captions):,} rows have no image in the archive: {names}"
        yield "rows without an image", RejectionError(NOT_READ, detail), end


def _group(file: Path) -> Iterator[tuple[str, dict[str, Member] | RejectionError, int]]:
    key, end = "", 0
    members: dict[str, Member] = {}
    repeated: RejectionError | None = None
    for member in scan(file):
        if isinstance(member, Unread):
            yield member.name, member.error, end
            continue
        if isinstance(member, RejectionError):
            if members:
                yield key, repeated or members, end
            yield f"after {key}" if members else "the first file", member, end
            return
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        own_key = member.name if not stem else f"{folder}/{stem}" if folder else stem
        if own_key != key:
            if members:
                yield key, repeated or members, end
            key, members, repeated = own_key, {}, None
        if ending.lower() in members:
            repeated = RejectionError("repeated file", f"{member.name} comes twice")
        members[ending.lower()] = member
        end = member.offset + member.size
    if members:
        yield key, repeated or members, end

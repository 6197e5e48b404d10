"""WebDataset archives, and img2dataset's parquet files that describe them.

Files of an archive that stand side by side and share their name up to the first dot of its last
part are one sample: ``00012.jpg``, ``00012.txt``, ``00012.json``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.data.sources.records import RejectionError
from vila_mc.data.sources.tars import Member, scan
from vila_mc.errors import DataError, SetupError

IMAGES = ("jpg", "jpeg", "png", "webp")


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
    captions = None
    if file.suffix == ".parquet":
        captions = _read_captions(file, caption_keys)
        file = file.with_suffix(".tar")
    for key, members, end in _group(file):
        if isinstance(members, RejectionError):
            yield key, members, end
            continue
        if captions is None:
            yield key, ShardSample(key, members), end
        elif captions.get(key) is None:
            yield key, RejectionError("missing caption", "the parquet file has none for it"), end
        else:
            yield key, ShardSample(key, members, captions[key]), end


def _group(file: Path) -> Iterator[tuple[str, dict[str, Member] | RejectionError, int]]:
    key, end = "", 0
    members: dict[str, Member] = {}
    repeated: RejectionError | None = None
    for member in scan(file):
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


def _read_captions(file: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Captions by key. One file of img2dataset describes one archive, so this is small."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SetupError(
            f"{file} needs pyarrow, which is not installed. Run pip install 'vila_mc[parquet]', or "
            "give the .tar itself, whose .txt or .json hold captions too."
        ) from None
    try:
        with file.open("rb") as raw:
            known = parquet.read_schema(raw).names
            column = next((name for name in columns if name in known), None)
            if column is None or "key" not in known:
                raise DataError(
                    f"{file} has the columns {_line(', '.join(known))}, but needs key and "
                    f"{' or '.join(columns)}. Name the column of captions with --caption-key."
                )
            table = parquet.read_table(raw, columns=["key", column])
        keys, captions = (table.column(name).to_pylist() for name in ("key", column))
    except OSError as error:
        if error.strerror is None:  # pyarrow's own way to say that it is no parquet file
            raise DataError(f"{file} is not a parquet file: {_line(error)}.") from None
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None
    except (ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged: {_line(error)}. Copy it again.") from None
    return dict(zip(map(str, keys), captions, strict=True))


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200].rstrip(".")

"""What every source speaks of: blocks of raw records, and records that had to be rejected.

A source reads its files twice over. ``blocks`` runs in one process, in order, and only cuts a file
into pieces; ``samples`` runs wherever there is a processor free and turns a piece into samples.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vila_mc.flow import RawSample

Record = dict[str, Any]

NO_SIMILAR_IMAGE = "no similar image"
NO_IMAGE_LEFT = "no image left"
NOT_READ = "not read"
"""Reason for what is in the input but holds no record, such as a link in an archive."""
LEFT_OUT = (NO_SIMILAR_IMAGE, NO_IMAGE_LEFT, NOT_READ)
"""Reasons that an option or the format asks for: listed and counted, but no faults."""

_READ_BY_KIND = {
    "text_list": "interleaved",
    "image_info": "interleaved",
    "conversations": "conversations",
    "messages": "conversations",
}
"""Keys that tell of what kind a record is."""
_LONGEST_DETAIL = 500
"""Characters. Records may hold anything, and messages quote from them."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot become a sample."""

    file: str
    place: int | str
    """Line of a JSON Lines file or element of a JSON array, from 1; or member of an archive."""
    reason: str
    """Kind of fault, the same words for every record with it."""
    detail: str
    """What it was in this record."""
    unread_bytes: int = 0
    """Bytes of the input that nobody looks into because of it."""

    def describe(self) -> str:
        """One line for a message: place, reason, detail."""
        return f"{self.file}:{self.place}: {self.reason}: {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """A line of PREFIX.rejected.jsonl."""
        where = "line" if isinstance(self.place, int) else "member"
        line = {"file": self.file, where: self.place, "reason": self.reason, "detail": self.detail}
        return line | ({"unread_bytes": self.unread_bytes} if self.unread_bytes else {})


class RejectionError(Exception):
    """Raised while a record is read; its place is added by the one who knows it."""

    def __init__(self, reason: str, detail: str, unread_bytes: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.unread_bytes = unread_bytes

    def __reduce__(self) -> tuple[type["RejectionError"], tuple[str, str, int]]:
        return RejectionError, (self.reason, self.detail, self.unread_bytes)

    def at(self, file: Path, place: int | str) -> Rejected:
        """The rejected record, now that its place is known."""
        detail = self.detail
        if len(detail) > _LONGEST_DETAIL:
            detail = f"{detail[:_LONGEST_DETAIL]}..."
        return Rejected(str(file), place, self.reason, detail, self.unread_bytes)


@dataclass(frozen=True, slots=True)
class Block:
    """Some neighbouring records of one file, not looked into yet."""

    file: Path
    end: int
    """Bytes of the file that are read when this block is."""
    entries: Sequence[tuple[int | str, Any]]
    """(place, raw record) in order; what a raw record is, only its source knows. A RejectionError
    stands where the file itself is damaged."""


class Source(Protocol):
    """A raw corpus. Small and picklable: every worker process gets a copy."""

    @property
    def files(self) -> Sequence[Path]:
        """Its files, in the order of the dataset."""
        ...

    def blocks(self, file: Path) -> Iterator[Block]:
        """The records of one file, in order, the same blocks each time.

        Raises:
            DataError: the file is missing or may not be read.
        """
        ...

    def prepared(self, folder: Path) -> "Source":
        """The source, ready to be read.

        Args:
            folder: for files that it needs while it is read.

        Raises:
            DataError: a file is of a kind that is not read, or what else it reads is missing or
                damaged.
        """
        ...

    def samples(self, block: Block) -> Iterator[RawSample | Rejected]:
        """Every record of a block, as samples or with the reason why it is none."""
        ...


def read(source: Source) -> Iterator[RawSample | Rejected]:
    """All of a source, in this process."""
    for file in source.files:
        for block in source.blocks(file):
            yield from source.samples(block)


def in_blocks(
    file: Path,
    entries: Iterable[tuple[int | str, Any, int]],
    most_records: int,
    most_bytes: int,
) -> Iterator[Block]:
    """Group (place, raw record, end in the file) into blocks.

    A block is full once its records have ``most_bytes``, in the file or as they will be read, or it
    holds ``most_records``.
    """
    taken: list[tuple[int | str, Any]] = []
    start = end = size = 0
    for place, raw, end in entries:
        taken.append((place, raw))
        # More than in the file, where that is compressed.
        size += len(raw) if isinstance(raw, bytes) else getattr(raw, "num_bytes", 0)
        if len(taken) >= most_records or max(size, end - start) >= most_bytes:
            yield Block(file, end, taken)
            taken, start, size = [], end, 0
    if taken:
        yield Block(file, end, taken)


def is_given(record: Record, key: str) -> bool:
    """Whether a record says anything under ``key``: null, "" and [] are what absent columns are
    written as."""
    return record.get(key) not in (None, "", [], {})


def refuse_other_case(record: Record, keys: Collection[str]) -> None:
    """Refuse what stands under a key that is one of ``keys`` but for case or spaces around it.

    Raises:
        RejectionError: there is such a key; nobody would look there.
    """
    for key in record:
        meant = key.strip().lower()
        if key != meant and meant in keys and is_given(record, key):
            raise RejectionError(
                "not supported", f"{key[:40]!r} is not read, and would be lost; name it {meant!r}"
            )


def missing_key(record: Record, wanted: str, option: str | None = None) -> RejectionError:
    """What to raise for a record of other keys.

    Args:
        record: the record, whose keys are named.
        wanted: the key, or several in words.
        option: the option that names another key.
    """
    known = ", ".join(list(record)[:20])[:200]
    detail = f"there is no {wanted}; the record has {known or 'no key at all'}"
    if option is not None:
        detail += f"; the option {option} says where to look"
    kind = next((kind for key, kind in _READ_BY_KIND.items() if is_given(record, key)), None)
    own_kind = {kind for key, kind in _READ_BY_KIND.items() if repr(key) in wanted}
    if kind is not None and kind not in own_kind:
        detail += f"; the kind {kind} reads such records"
    return RejectionError("missing key", detail)


def require_string(record: Record, key: str, option: str | None = None) -> str:
    """The text under ``key``, which ``option`` can change.

    Raises:
        RejectionError: it is missing, no text, or blank.
    """
    if not is_given(record, key):
        raise missing_key(record, repr(key), option)
    value = record[key]
    if not isinstance(value, str):
        raise RejectionError("not a text", f"{key!r} is of type {type(value).__name__}")
    if not value.strip():
        raise RejectionError("empty text", f"{key!r} is blank")
    return value

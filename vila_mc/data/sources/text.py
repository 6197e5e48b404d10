"""Text-only corpora: JSON Lines with one document a line, or plain text files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vila_mc.config.options import Argument
from vila_mc.data.ingest.inputs import expand_inputs, files_below
from vila_mc.data.sources.compressed import DAMAGE
from vila_mc.data.sources.file_kinds import open_regular, refuse_no_archive
from vila_mc.data.sources.options import RawOptions
from vila_mc.data.sources.plain_text import Document, is_plain, open_plain, read_documents, text_of
from vila_mc.data.sources.record_files import RecordSource, decode
from vila_mc.data.sources.records import (
    NOT_READ,
    Block,
    Record,
    Rejected,
    RejectionError,
    in_blocks,
    require_string,
)
from vila_mc.errors import DataError
from vila_mc.flow import RawSample, RawText

READ_IN_FOLDERS = (
    *(".txt", ".txt.gz", ".txt.zst", ".tar"),
    *(".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".zip"),
)
"""Endings of what is read of a folder."""
_LONGEST_LOOK = 1 << 16
"""Bytes of a first line that are looked at."""


@dataclass(frozen=True)
class TextSource(RecordSource):
    """One sample per document: all of it trained, EOS at its end.

    A ``.txt`` file, also of a ``.tar``, is a document or holds one a line; any other file holds
    JSON records.
    """

    key: str = "text"
    """Where each object holds the document."""
    document: Document = "file"
    """What of a ``.txt`` file is one document."""
    others: frozenset[Path] = frozenset()
    """Those of the files that are listed and not read."""

    block_records = 10_000

    readable = "text in .txt, .txt.gz, .txt.zst or .tar files, or JSON records in .jsonl, "
    readable += ".jsonl.gz, .jsonl.zst, .zip or .json files"

    def check(self, file: Path) -> None:
        """See ``RecordSource.check``."""
        if file in self.others:
            return
        if file.suffix.lower() == ".tar":
            refuse_no_archive(file)
            return
        super().check(file)
        if is_plain(file) and self._holds_records(file):
            raise DataError(
                f"{file} holds JSON records with {self.key!r}, not plain text. Give it the ending "
                ".jsonl."
            )

    def blocks(self, file: Path) -> Iterator[Block]:
        """See ``Source.blocks``."""
        if file in self.others:
            yield Block(file, _size(file), [(file.name, _left_out(file))])
        elif _is_text(file):
            entries = read_documents(file, self.document)
            yield from in_blocks(file, entries, self.block_records, self.block_bytes)
        else:
            yield from super().blocks(file)

    def samples(self, block: Block) -> Iterator[RawSample | Rejected]:
        """See ``Source.samples``."""
        if block.file not in self.others and not _is_text(block.file):
            yield from super().samples(block)
            return
        for place, raw in block.entries:
            try:
                if isinstance(raw, RejectionError):
                    raise raw
                yield _sample(text_of(raw), place)
            except RejectionError as error:
                yield error.at(block.file, place)

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample]:
        """See ``RecordSource.parse``."""
        yield _sample(require_string(record, self.key, "text_key"), place)

    def _holds_records(self, file: Path) -> bool:
        try:
            with open_regular(file) as raw:
                return self.key in decode(open_plain(file, raw).readline(_LONGEST_LOOK))
        except (RejectionError, *DAMAGE):  # reading will tell
            return False


def _sample(text: str, place: int | str) -> RawSample:
    return RawSample((RawText(text, is_trained=True, ends_turn=True),), place)


def _is_text(file: Path) -> bool:
    return is_plain(file) or file.suffix.lower() == ".tar"


def _size(file: Path) -> int:
    return os.stat(file, follow_symlinks=False).st_size


def _left_out(file: Path) -> RejectionError:
    what = "it is a link" if file.is_symlink() else "it is neither text nor records"
    return RejectionError(NOT_READ, what, _size(file))


@dataclass(frozen=True, kw_only=True)
class TextOptions(RawOptions):
    """JSON Lines with one document a line, or .txt files (also in a .tar or a folder)."""

    text_key: Annotated[str, Argument("KEY")] = "text"
    """Key of the document."""
    document: Document = "file"
    """What of a .txt file is one document: all of the file, or each line."""

    def source(self) -> TextSource:
        """See ``RawOptions.source``."""
        files = expand_inputs(self.input, endings=READ_IN_FOLDERS)
        folders = [Path(one) for one in self.input if Path(one).is_dir()]
        read = set(files)
        others = [file for one in folders for file in files_below(one) if file not in read]
        return TextSource([*files, *others], self.text_key, self.document, frozenset(others))

    def facts(self) -> dict[str, Any]:
        """See ``RawOptions.facts``."""
        found = super().facts()
        # Sets that were made before there was a choice do not name it.
        return {k: v for k, v in found.items() if k != "document" or v != "file"}

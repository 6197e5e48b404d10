"""Text-only corpora: JSON Lines with one document a line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vila_mc.data.sources.records import Record, Rejected, read_samples, require_string
from vila_mc.flow import RawSample, TextPart


def read_text(files: Sequence[Path], key: str = "text") -> Iterator[RawSample | Rejected]:
    """One sample per document: all of it trained, EOS at its end.

    Args:
        files: ``.jsonl``, ``.jsonl.gz`` or ``.json`` (array) files.
        key: where each object holds the document.

    Raises:
        DataError: a file cannot be read.
    """

    def parse(record: Record, origin: str) -> RawSample:
        text = require_string(record, key)
        return RawSample((TextPart(text, is_trained=True, ends_turn=True),), origin)

    return read_samples(files, parse)

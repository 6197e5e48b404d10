"""Text of raw corpora, for training a tokenizer."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from vila_mc.data.sources.file_kinds import open_regular
from vila_mc.data.sources.record_files import read_records
from vila_mc.errors import DataError

TEXT_KEYS = ("text", "text_list", "caption", "value", "question", "answer", "content")
"""Keys whose strings, or lists of strings, count as text."""
_LONGEST_PART = 1_000_000
"""Characters of a line that are read at once; the trainer cuts lines to a thousandth of it."""
RECORD_FILES = (".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip")


def read_sentences(files: Sequence[Path]) -> Iterator[str]:
    """Every text in the files: lines of plain text, or the strings under ``TEXT_KEYS`` in JSON.

    Records that are not JSON objects are passed over, since nothing is trained on them.

    Args:
        files: those of ``RECORD_FILES`` are read as records, others as UTF-8 text.

    Raises:
        DataError: a file cannot be read.
    """
    for file in files:
        if file.name.endswith(RECORD_FILES):
            for record in read_records(file):
                yield from _texts(record)
        else:
            yield from _lines(file)


def _lines(file: Path) -> Iterator[str]:
    try:
        with io.TextIOWrapper(open_regular(file), encoding="utf-8") as stream:
            while part := stream.readline(_LONGEST_PART):
                yield part
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason}. Convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _texts(value: object, is_text: bool = False) -> Iterator[str]:
    if isinstance(value, str) and is_text:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, is_text)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, key in TEXT_KEYS)

"""Text to train a tokenizer on: that of raw records of every kind, and of their chat template.

A template is most of what a short conversation holds, and a tokenizer that was trained on the
records alone spells it letter by letter.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vila_mc.data.chat_templates import Template
from vila_mc.data.sources.compressed import DAMAGE
from vila_mc.data.sources.file_kinds import open_regular
from vila_mc.data.sources.parquet import read_texts
from vila_mc.data.sources.plain_text import is_plain, open_plain
from vila_mc.data.sources.record_files import decode, read_records
from vila_mc.data.sources.records import NOT_READ, RejectionError
from vila_mc.data.sources.tars import read_member
from vila_mc.data.sources.webdataset import read_shard
from vila_mc.data.turns import IMAGE_MARKER, VIDEO_MARKER
from vila_mc.errors import DataError

TEXT_KEYS = ("text", "text_list", "caption", "value", "question", "answer", "content")
"""Keys whose strings, or lists of strings, count as text."""
READ_IN_FOLDERS = (
    *(".txt", ".txt.gz", ".txt.zst"),
    *(".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".zip", ".tar", ".parquet"),
)
"""Endings of what is read of a folder."""
_RECORDS = (".json", ".jsonl", ".gz", ".zst", ".zip")
_LONGEST_PART = 1_000_000
"""Characters of a line that are read at once; the trainer cuts lines to a thousandth of it."""
_TEMPLATE_REPEATS = 10_000
"""Texts that the words of a template are read with. As often as that, no word of a billion is
learnt before them; more would only fill the memory."""


def read_sentences(
    files: Sequence[Path],
    keys: Sequence[str] = TEXT_KEYS,
    counts: Counter[Path] | None = None,
) -> Iterator[str]:
    """Every text in the files.

    Of JSON records, and of columns of Parquet files, the strings under ``keys``; of WebDataset
    archives the ``.txt`` of a sample, or else what its ``.json`` has under ``keys``; of any other
    file its lines. Records that are not JSON objects are passed over, since nothing is trained on
    them.

    Args:
        files: told apart by their endings.
        keys: where records hold text.
        counts: takes how many texts each file holds.

    Raises:
        DataError: a file cannot be read.
        SetupError: a Parquet file is given, but pyarrow is not installed.
    """
    counts = Counter() if counts is None else counts
    for file in files:
        for text in _reader_of(file)(file, keys):
            counts[file] += 1
            yield text


def with_template(sentences: Iterable[str], template: Template) -> Iterator[str]:
    """The sentences, and behind each of the first of them the words of the template."""
    words = template.own_text()
    for number, sentence in enumerate(sentences):
        yield sentence
        if number < _TEMPLATE_REPEATS:
            yield words


def _reader_of(file: Path) -> Callable[[Path, Sequence[str]], Iterator[str]]:
    if is_plain(file):
        return _lines
    if file.suffix in (".tar", ".parquet"):
        return _archived if file.suffix == ".tar" else read_texts
    return _recorded if file.name.endswith(_RECORDS) else _lines


def _recorded(file: Path, keys: Sequence[str]) -> Iterator[str]:
    for record in read_records(file):
        yield from _texts(record, keys)


def _archived(file: Path, keys: Sequence[str]) -> Iterator[str]:
    for key, found, _ in read_shard(file, keys):
        try:
            if isinstance(found, RejectionError):
                raise found
            if "txt" in found.members:
                yield read_member(file, found.members["txt"]).decode("utf-8", "replace")
            elif "json" in found.members:
                yield from _texts(decode(read_member(file, found.members["json"])), keys)
        except RejectionError as error:
            if error.reason != NOT_READ:
                raise DataError(f"{file}: {key}: {error.detail}. Copy or repair it.") from None


def _lines(file: Path, keys: Sequence[str]) -> Iterator[str]:
    try:
        with (
            open_regular(file) as raw,
            io.TextIOWrapper(open_plain(file, raw), encoding="utf-8-sig") as stream,
        ):
            while part := stream.readline(_LONGEST_PART):
                yield part
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason}. Convert it to UTF-8.") from None
    except DAMAGE as error:
        raise DataError(f"{file} is damaged: {error}. Copy it again.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def _texts(value: object, keys: Sequence[str], is_text: bool = False) -> Iterator[str]:
    if isinstance(value, str) and is_text:
        yield value.replace(IMAGE_MARKER, " ").replace(VIDEO_MARKER, " ")
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, keys, is_text)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, keys, key in keys)

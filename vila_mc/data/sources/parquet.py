"""Parquet files: columns of them, or rows with images embedded, in bounded memory.

A value that many rows share stands once in the file and once in memory: half a megabyte of parquet
could otherwise unfold into gigabytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.data.image_codec import MAX_IMAGE_BYTES
from vila_mc.data.sources.file_kinds import open_regular
from vila_mc.data.sources.records import RejectionError
from vila_mc.errors import DataError, SetupError

_IMAGE = "image"
_ROWS = 1024
"""Rows of short values that are read at a time."""
_MOST_BYTES = 1 << 30
"""Most bytes that a column of a row group takes as stored: pyarrow reads a page of it at least."""


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """A row that holds its image."""

    image: bytes
    caption: Any

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.image) + len(self.caption if isinstance(self.caption, str) else "")


def read_columns(file: Path, first: str, others: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """(``first``, the first of ``others`` that there is) of every row.

    Raises:
        DataError: the file cannot be read, is no parquet file, or lacks the columns.
        SetupError: pyarrow is not installed.
    """
    with _open(file) as opened:
        columns = [first, _column(file, opened, first, others)]
        for batch in _batches(file, opened, columns, _ROWS):
            yield from zip(*map(_values, batch), strict=True)


def read_texts(file: Path, columns: Sequence[str]) -> Iterator[str]:
    """Every text in those of ``columns`` that there are.

    Raises:
        DataError: the file cannot be read, is no parquet file, or has none of the columns.
        SetupError: pyarrow is not installed.
    """
    with _open(file) as opened:
        names = opened.schema_arrow.names
        if not (found := [name for name in columns if name in names]):
            raise DataError(
                f"{file} has the columns {_line(', '.join(names))}, none of which is "
                f"{' or '.join(columns)}. Name one that holds text.",
                option="keys",
            )
        for batch in _batches(file, opened, found, _ROWS):
            for column in batch:
                yield from (value for value in _values(column) if isinstance(value, str))


def has_embedded_images(file: Path) -> bool:
    """Whether rows hold their images. Raises DataError, SetupError."""
    with _open(file) as opened:
        return _IMAGE in opened.schema_arrow.names


def read_embedded(
    file: Path, captions: Sequence[str]
) -> Iterator[tuple[int, EmbeddedPair | RejectionError, int]]:
    """(row from 1, the pair in it, bytes of the file read so far, about) of every row.

    Images are ``binary``, or a ``struct`` with ``bytes`` in it, as Hugging Face's datasets are.

    Args:
        file: the parquet file.
        captions: columns that captions may stand in; the first it has counts.

    Raises:
        DataError: the file cannot be read, is no parquet file, or has no captions.
        SetupError: pyarrow is not installed.
    """
    with _open(file) as opened:
        column = _column(file, opened, _IMAGE, captions)
        size, rows = file.stat().st_size, opened.metadata.num_rows
        batches = _batches(file, opened, [_IMAGE, column], 1)
        for number, (images, texts) in enumerate(batches, start=1):
            (image,), (text,) = images.to_pylist(), _values(texts)
            yield number, _pair(image, text), size * number // rows


def _pair(image: object, caption: object) -> EmbeddedPair | RejectionError:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        return RejectionError("missing image", "the row holds no bytes of an image")
    if len(data) > MAX_IMAGE_BYTES:
        return RejectionError("too long", f"the image has {len(data):,} bytes")
    return EmbeddedPair(data, caption)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``, whose errors speak of the file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SetupError(
            f"{file} needs pyarrow, which is not installed. Run pip install 'vila_mc[parquet]', or "
            "give the .tar itself, whose .txt or .json hold captions too."
        ) from None
    try:
        with open_regular(file) as raw:
            texts = [name for name in parquet.read_schema(raw).names if name != _IMAGE]
            yield parquet.ParquetFile(raw, read_dictionary=texts, pre_buffer=False)
    except OSError as error:
        if error.strerror is None:  # pyarrow's own way to say that it is no parquet file
            raise DataError(f"{file} is not a parquet file: {_line(error)}.") from None
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None
    except (ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged: {_line(error)}. Copy it again.") from None


def _column(file: Path, opened: Any, first: str, others: Sequence[str]) -> str:
    names = opened.schema_arrow.names
    column = next((name for name in others if name in names), None)
    if column is None or first not in names:
        raise DataError(
            f"{file} has the columns {_line(', '.join(names))}, but needs {first} and "
            f"{' or '.join(others)}. The option caption_key names the column of captions."
        )
    return column


def _batches(file: Path, opened: Any, columns: list[str], rows: int) -> Iterator[list[Any]]:
    """Some columns of some rows at a time."""
    facts = opened.metadata
    for group in map(facts.row_group, range(facts.num_row_groups)):
        for column in map(group.column, range(facts.num_columns)):
            is_read = column.path_in_schema.partition(".")[0] in columns
            if is_read and column.total_uncompressed_size > _MOST_BYTES:
                raise DataError(
                    f"{file} has a row group with {column.total_uncompressed_size:,} bytes in the "
                    f"column {column.path_in_schema}; at most {_MOST_BYTES:,} are read at once. "
                    "Write it with smaller row groups."
                )
    for batch in opened.iter_batches(rows, columns=columns, use_threads=False):
        yield [batch.column(name) for name in columns]


def _values(column: Any) -> list[Any]:
    """Python values; those that rows share are one object."""
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    known = column.dictionary.to_pylist()
    return [None if index is None else known[index] for index in column.indices.to_pylist()]


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200].rstrip(".")

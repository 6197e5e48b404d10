"""Write an indexed dataset: all of it, or nothing that could be taken for it.

Everything goes to PREFIX.*.partial first. ``finish`` flushes it to the disk and renames .bin, .idx
and at last the manifest; only a set with a manifest counts. What a crash leaves behind is
overwritten by the next run.
"""

import contextlib
import fcntl
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from vila_mc import __version__
from vila_mc.data.indexed_format import (
    DTYPE_CODES,
    HEADER,
    LENGTH,
    MAGIC,
    MODE,
    MODE_IMAGE,
    MODE_PROMPT_TEXT,
    MODE_TRAINED_TEXT,
    POINTER,
    TOKEN,
    VERSION,
    dtype_code,
    text_dtype,
    with_suffix,
)
from vila_mc.data.manifest import FORMAT_VERSION, SUFFIX, Manifest, SetKind, sha256_of, to_json
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import DataError, user_error
from vila_mc.flow import EncodedImage, EncodedSample, EncodedText

_CHUNK = 1 << 20
"""Index entries converted at a time, so that ``finish`` needs no memory of its own."""
_LONGEST_PIECE = 2**31 - 1
"""Lengths are int32."""


class IndexedWriter:
    """One dataset in the making. Use it in a ``with`` block and end that with ``finish``.

    Args:
        prefix: the set becomes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.
        kind: text (tokens alone) or multimodal.
        tokenizer: what the samples were encoded with.

    Raises:
        DataError: the set exists already, another run writes it, or the disk refuses.
    """

    def __init__(self, prefix: Path, kind: SetKind, tokenizer: Tokenizer) -> None:
        self._prefix = prefix
        self._kind: SetKind = kind
        self._tokenizer = tokenizer
        self._dtype = text_dtype(tokenizer.vocab_size) if kind == "text" else DTYPE_CODES[1]
        self._lengths = array("i")
        self._modes = array("b")
        self._documents = array("q", [0])
        self._tokens = self._images = self._bytes = 0
        refuse_existing(prefix)
        with _as_data_error(self._partial(".bin")):
            prefix.parent.mkdir(parents=True, exist_ok=True)
            # Append mode: nothing is lost if another run holds the lock.
            self._file: BinaryIO = self._partial(".bin").open("ab")
            self._lock()
            self._file.truncate(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def add(self, sample: EncodedSample) -> None:
        """Append a sample.

        Raises:
            DataError: a piece is too large, a text-only set is given an image, or the disk is full.
            ValueError: the sample is empty.
        """
        if not sample.pieces:
            raise ValueError("a sample without pieces")
        if self._kind == "text":
            self._add_text_document(sample)
        else:
            for piece in sample.pieces:
                self._add_piece(piece)
        self._documents.append(len(self._lengths))

    def finish(self, source: dict[str, Any]) -> Manifest:
        """Make the set real: flush, rename .bin, .idx and the manifest, in this order.

        Args:
            source: what the set was made from, for the manifest.

        Raises:
            DataError: the disk is full or refuses.
        """
        partial_idx = self._partial(".idx")
        with _as_data_error(self._prefix):
            with partial_idx.open("wb") as index:
                self._write_index(index)
                _flush(index)
            _flush(self._file)
            manifest = self._manifest(source, sha256_of(partial_idx))
            with self._partial(SUFFIX).open("w", encoding="utf-8") as text:
                text.write(to_json(manifest))
                _flush(text)
            for suffix in (".bin", ".idx", SUFFIX):
                self._partial(suffix).replace(with_suffix(self._prefix, suffix))
            _sync_folder(self._prefix.parent)
        return manifest

    def discard(self) -> None:
        """Remove what is not finished; after ``finish`` it only closes the file."""
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        for suffix in (".bin", ".idx", SUFFIX):
            self._partial(suffix).unlink(missing_ok=True)

    def _partial(self, suffix: str) -> Path:
        return with_suffix(self._prefix, suffix + ".partial")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(
                f"another run is writing {self._prefix}. Wait for it or choose another --output."
            ) from None

    def _add_text_document(self, sample: EncodedSample) -> None:
        ids: list[int] = []
        for piece in sample.pieces:
            if not isinstance(piece, EncodedText):
                raise DataError(
                    f"{self._prefix} is a text-only set and takes no images. Make it multimodal."
                )
            ids += piece.ids
        self._tokens += len(ids)
        self._append(np.asarray(ids, self._dtype).tobytes(), len(ids))

    def _add_piece(self, piece: EncodedText | EncodedImage) -> None:
        if isinstance(piece, EncodedText):
            data = np.asarray(piece.ids, TOKEN).tobytes()
            self._modes.append(MODE_TRAINED_TEXT if piece.is_trained else MODE_PROMPT_TEXT)
            self._tokens += len(piece.ids)
        else:
            data = piece.data + bytes(-len(piece.data) % TOKEN.itemsize)
            self._modes.append(MODE_IMAGE)
            self._images += 1
        self._append(data, len(data))

    def _append(self, data: bytes, length: int) -> None:
        if length > _LONGEST_PIECE:
            raise DataError(
                f"a piece of {length:,} elements is too long for {self._prefix}; at most "
                f"{_LONGEST_PIECE:,} fit. Split the document or drop it."
            )
        with _as_data_error(self._partial(".bin")):
            self._file.write(data)
        self._lengths.append(length)
        self._bytes += len(data)

    def _write_index(self, index: BinaryIO) -> None:
        code = dtype_code(self._dtype)
        index.write(HEADER.pack(MAGIC, VERSION, code, len(self._lengths), len(self._documents)))
        for chunk in _chunks(self._lengths):
            index.write(chunk.astype(LENGTH).tobytes())
        start = 0
        for chunk in _chunks(self._lengths):
            ends = start + np.cumsum(chunk.astype(POINTER) * self._dtype.itemsize)
            index.write(np.concatenate([[start], ends[:-1]]).astype(POINTER).tobytes())
            start = int(ends[-1])
        for chunk in _chunks(self._documents):
            index.write(chunk.astype(POINTER).tobytes())
        for chunk in _chunks(self._modes):
            index.write(chunk.astype(MODE).tobytes())

    def _manifest(self, source: dict[str, Any], idx_sha256: str) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            kind=self._kind,
            tokenizer_sha256=self._tokenizer.fingerprint(),
            vocab_size=self._tokenizer.vocab_size,
            samples=len(self._documents) - 1,
            tokens=self._tokens,
            images=self._images,
            bin_bytes=self._bytes,
            idx_sha256=idx_sha256,
            source=source,
            tool_version=__version__,
        )


def refuse_existing(prefix: Path) -> None:
    """Never overwrite a finished set. Raises DataError."""
    if with_suffix(prefix, SUFFIX).exists():
        raise DataError(
            f"the dataset {prefix} exists already. Delete its .bin, .idx and .manifest.json, or "
            "choose another --output."
        )


def _chunks(values: array[int]) -> Iterator[np.ndarray]:
    whole = np.frombuffer(values, dtype=values.typecode)
    for start in range(0, len(whole), _CHUNK):
        yield whole[start : start + _CHUNK]


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise user_error(error) or DataError(f"{error.filename}: {error}.") from None

"""Encoded samples as the bytes and index entries of an indexed dataset.

Serialising needs no open file, so the processes that encode do it, and the writer only appends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vila_mc.data.indexed.dataset_manifest import SetKind
from vila_mc.data.indexed.layout import (
    LENGTH,
    MODE,
    MODE_IMAGE,
    MODE_PROMPT_TEXT,
    MODE_TRAINED_TEXT,
    SIDE,
    TOKEN,
)
from vila_mc.errors import DataError
from vila_mc.flow import EncodedSample, TextPiece

LONGEST_PIECE = 2**31 - 1
"""Lengths are int32."""


@dataclass(frozen=True, slots=True)
class Serialised:
    """Samples side by side, ready to be appended."""

    data: bytes
    """What goes into .bin."""
    lengths: np.ndarray
    """[pieces] int32, in elements of the set's type."""
    modes: np.ndarray
    """[pieces] int8; empty in a text-only set."""
    pieces: np.ndarray
    """[samples] int64: pieces of each sample."""
    sides: np.ndarray
    """[images, 2] int32 width and height; 0 where they are not known."""
    tokens: int

    @property
    def images(self) -> int:
        """Images of all samples."""
        return len(self.sides)


def serialise(samples: Sequence[EncodedSample], kind: SetKind, dtype: np.dtype) -> Serialised:
    """Lay samples out side by side.

    Args:
        samples: at least one piece each.
        kind: kind of the set.
        dtype: its element type.

    Raises:
        DataError: a text-only set is given an image, or a piece is too long for the index.
        ValueError: a sample is empty.
    """
    if not all(sample.pieces for sample in samples):
        raise ValueError("a sample without pieces")
    return _serialise_text(samples, dtype) if kind == "text" else _serialise_multimodal(samples)


def _serialise_text(samples: Sequence[EncodedSample], dtype: np.dtype) -> Serialised:
    documents = []
    for sample in samples:
        ids = [piece.ids for piece in sample.pieces if isinstance(piece, TextPiece)]
        if len(ids) != len(sample.pieces):
            raise DataError("a text-only set takes no images. Make it multimodal.")
        documents.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
    lengths = _lengths([len(ids) for ids in documents])
    data = np.concatenate(documents, dtype=dtype, casting="unsafe") if documents else np.empty(0)
    ones = np.ones(len(documents), np.int64)
    modes, sides = np.empty(0, MODE), np.empty((0, 2), SIDE)
    return Serialised(data.tobytes(), lengths, modes, ones, sides, int(lengths.sum()))


def _serialise_multimodal(samples: Sequence[EncodedSample]) -> Serialised:
    chunks: list[bytes] = []
    lengths: list[int] = []
    modes: list[int] = []
    sides: list[tuple[int, int]] = []
    tokens = 0
    for piece in (piece for sample in samples for piece in sample.pieces):
        if isinstance(piece, TextPiece):
            chunks.append(np.asarray(piece.ids, TOKEN).tobytes())
            lengths.append(len(chunks[-1]))
            modes.append(MODE_TRAINED_TEXT if piece.is_trained else MODE_PROMPT_TEXT)
            tokens += len(piece.ids)
        else:
            padding = -len(piece.data) % TOKEN.itemsize
            chunks += [bytes(piece.data), bytes(padding)]
            lengths.append(len(piece.data) + padding)
            modes.append(MODE_IMAGE)
            sides.append(piece.sides or (0, 0))
    pieces = np.array([len(sample.pieces) for sample in samples], np.int64)
    by_image = np.array(sides, SIDE).reshape(-1, 2)
    kinds = np.array(modes, MODE)
    return Serialised(b"".join(chunks), _lengths(lengths), kinds, pieces, by_image, tokens)


def _lengths(lengths: list[int]) -> np.ndarray:
    if lengths and max(lengths) > LONGEST_PIECE:
        raise DataError(
            f"a piece of {max(lengths):,} elements is too long for an index; at most "
            f"{LONGEST_PIECE:,} fit. Split the document or drop it."
        )
    return np.array(lengths, LENGTH)

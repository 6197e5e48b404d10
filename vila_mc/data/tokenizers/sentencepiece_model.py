"""What a SentencePiece ``.model`` file says, read from its bytes.

The sentencepiece package tells pieces and scores but not how text is normalised, and protobuf is
not among our dependencies. The file is an ordinary protobuf message, so its few fields are read
here.

Source:
    sentencepiece_model.proto of google/sentencepiece (field numbers).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from vila_mc.errors import CheckpointError
from vila_mc.foreign_files import ForeignFileError, read_foreign

_BPE = 2
_DEFAULT_PIECE_TYPE = 1


class PieceType(IntEnum):
    """Kinds of pieces."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_PIECE_TYPES = {b"": PieceType.NORMAL} | {bytes((0x18, kind)): kind for kind in PieceType}
"""By the last bytes of a piece."""
_SCORE = struct.Struct("<f")
_LONGEST_SHIFT = 63
"""Bits of a number that come in groups of 7."""
LARGEST_BYTES = 1 << 26
"""Largest model that is read; those in use have a few megabytes at most."""


class Piece(NamedTuple):
    """One token of the vocabulary."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The parts of a model that decide how text becomes ids."""

    pieces: tuple[Piece, ...]
    """In the order of their ids."""
    is_bpe: bool
    has_byte_fallback: bool
    is_identity: bool
    """Characters stay as they are: no Unicode normalisation."""
    adds_dummy_prefix: bool
    removes_extra_whitespace: bool

    def special(self, text: str) -> int | None:
        """Id of a control or unknown piece, None if there is none of that text."""
        for index, piece in enumerate(self.pieces):
            if piece.text == text and piece.type in (PieceType.CONTROL, PieceType.UNKNOWN):
                return index
        return None


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a ``.model`` file, for a conversion.

    Raises:
        CheckpointError: the file is missing or is not a SentencePiece model.
    """
    try:
        return parse(read_foreign(path, LARGEST_BYTES))
    except OSError as error:
        raise CheckpointError(
            f"the tokenizer {path} cannot be read: {error.strerror}. Give a SentencePiece .model."
        ) from None
    except ForeignFileError as error:
        raise CheckpointError(
            f"the tokenizer {path} {error}. Give the .model file the data was made with."
        ) from None


def parse(data: bytes) -> SentencePieceModel:
    """Read the bytes of a model. Raises ForeignFileError: it is none."""
    try:
        return _parse(data)
    except (ValueError, LookupError, struct.error, AttributeError, TypeError):
        raise ForeignFileError("is not a SentencePiece model") from None


def _parse(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(value))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normaliser = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_bpe=trainer.get(3) == _BPE and not trainer.get(24, 0),  # 24: space as suffix
        has_byte_fallback=bool(trainer.get(35, 0)),
        # 2: table of the normaliser; 5: spaces become U+2581.
        is_identity=not normaliser.get(2) and bool(normaliser.get(5, 1)),
        adds_dummy_prefix=bool(normaliser.get(3, 1)),
        removes_extra_whitespace=bool(normaliser.get(4, 1)),
    )


def _piece(data: int | bytes) -> Piece:
    if isinstance(data, bytes) and data[:1] == b"\x0a" and (end := 2 + data[1]) < 130:
        # A text of up to 127 bytes, then the score, then perhaps the type: nearly all pieces.
        known = _PIECE_TYPES.get(data[end + 5 :])
        if known is not None and data[end : end + 1] == b"\x15":
            return Piece(data[2:end].decode(), _SCORE.unpack_from(data, end + 1)[0], known)
    fields = dict(_fields(data))
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("not a piece")
    kind = PieceType(int(fields.get(3, _DEFAULT_PIECE_TYPE)))
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)


def _fields(data: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message; numbers as int, all else as bytes."""
    if isinstance(data, int):
        raise ValueError("a message was expected")
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            number, position = _varint(data, position)
            yield field, number
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position + length > len(data):
            raise ValueError("truncated")
        yield field, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
        if byte < 128:
            return value, position
        if shift > _LONGEST_SHIFT:
            raise ValueError("a number without end")

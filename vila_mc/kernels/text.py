"""The face of csrc/text: SentencePiece's byte-pair encoding in C++. No torch, no sentencepiece."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_ROOM = 8
"""Ids that the library may write beyond the last one."""
_LIBRARY = Path(__file__).with_name("libvila_mc_text.so")


class BytePairEncoder:
    """Encodes as SentencePiece does with a BPE model that normalises nothing.

    That is: a space in front of every text, U+2581 as the space inside pieces, bytes for
    characters that are not in the vocabulary. Not safe for several threads at once.

    Args:
        pieces: text of every token, in the order of their ids.
        scores: of the same tokens; a higher one is merged first.
        is_normal: whether a token is an ordinary piece, that text may become.
        byte_ids: ids of the tokens for the bytes 0 to 255.

    Raises:
        RuntimeError: the library is not built, see ``is_built``.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        is_normal: Sequence[bool],
        byte_ids: Sequence[int],
    ) -> None:
        library = _load()
        if library is None:
            raise RuntimeError(f"{_LIBRARY} is not built")
        encoded = [piece.encode() for piece in pieces]
        self._delete = library.vila_mc_bpe_delete
        self._encode = library.vila_mc_bpe_encode
        arrays = (
            np.array([len(piece) for piece in encoded], np.int32),
            np.array(scores, np.float32),
            np.array(is_normal, np.uint8),
            np.array(byte_ids, np.int32),
        )
        sizes, score, normal, byte = (_pointer(array) for array in arrays)
        self._handle = library.vila_mc_bpe_new(
            b"".join(encoded), sizes, score, normal, len(encoded), byte
        )
        if not self._handle:
            raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._delete(self._handle)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[tokens] int32 of each text.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair.
        """
        if not texts:
            return []
        encoded = [text.encode() for text in texts]
        text_ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        ids = np.empty(int(text_ends[-1]) + len(texts) + _ROOM, np.int32)
        id_ends = np.empty(len(texts), np.int64)
        self._encode(
            self._handle,
            b"".join(encoded),
            _pointer(text_ends),
            len(texts),
            _pointer(ids),
            _pointer(id_ends),
        )
        ends = id_ends.tolist()
        return [ids[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def is_built() -> bool:
    """Whether setup.py found a C++ compiler."""
    return _load() is not None


@cache
def _load() -> Any:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.vila_mc_bpe_new.restype = pointer
    library.vila_mc_bpe_new.argtypes = [ctypes.c_char_p, *[pointer] * 3, ctypes.c_int32, pointer]
    library.vila_mc_bpe_delete.restype = None
    library.vila_mc_bpe_delete.argtypes = [pointer]
    library.vila_mc_bpe_encode.restype = None
    library.vila_mc_bpe_encode.argtypes = [
        pointer,
        ctypes.c_char_p,
        pointer,
        integer,
        pointer,
        pointer,
    ]
    return library


def _pointer(values: np.ndarray) -> int:
    return values.ctypes.data

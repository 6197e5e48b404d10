"""The face of csrc/text: SentencePiece's byte-pair encoding in C++. No torch, no sentencepiece."""

import itertools
from collections.abc import Sequence

import numpy as np

try:
    from vila_mc.kernels import _text  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # there was no compiler
    _text = None


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
        if _text is None:
            raise RuntimeError("csrc/text is not built")
        assert len(pieces) == len(scores) == len(is_normal)
        assert len(byte_ids) == 256
        self._encoder = _text.Encoder(
            [piece.encode() for piece in pieces], scores, is_normal, byte_ids
        )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[tokens] int32 of each text.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair.
        """
        ids, ends = self._encoder.encode_batch(texts)
        bounds = [0, *ends.tolist()]
        return [ids[start:end] for start, end in itertools.pairwise(bounds)]


def is_built() -> bool:
    """Whether setup.py found a C++ compiler."""
    return _text is not None

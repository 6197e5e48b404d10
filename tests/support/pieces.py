"""Pieces of samples, in short."""

from collections.abc import Sequence

import numpy as np

from vila_mc.flow import TextPiece


def text_piece(ids: Sequence[int] | np.ndarray, is_trained: bool) -> TextPiece:
    return TextPiece(np.array(ids, np.int32), is_trained)

"""Width, height and tiles of the images of a set, found by the piece that an image is."""

import numpy as np

from vila_mc.data.indexed.layout import MODE_IMAGE
from vila_mc.data.tiles import Tiling

_BLOCK = 64
"""Pieces between two numbers that are kept of the images before them: a piece costs a byte."""
_CHUNK = 1 << 18
"""Images whose tiles are counted at a time."""


class ImageSides:
    """The images of a set as a tiling sees them.

    Args:
        modes: [pieces] mode of each.
        sides: [images, 2] integers, width and height of each image, at least 1.
        tiling: how images are cut.
    """

    def __init__(self, modes: np.ndarray, sides: np.ndarray, tiling: Tiling) -> None:
        self._modes, self._sides = modes, sides
        starts = np.arange(0, len(modes), _BLOCK)
        in_block = np.add.reduceat(modes == MODE_IMAGE, starts, dtype=np.int64)
        self._before = np.cumsum(in_block) - in_block
        self.tiles = np.empty(len(sides), np.uint8)
        """[images] tiles of each, the thumbnail included."""
        for start in range(0, len(sides), _CHUNK):
            end = start + _CHUNK
            self.tiles[start:end] = tiling.counts(sides[start:end])

    def numbers(self, pieces: np.ndarray) -> np.ndarray:
        """[n] int64: which image of the set each of some pieces is, all of them images."""
        block, offset = np.divmod(pieces, _BLOCK)
        within = np.arange(_BLOCK)
        near = (block * _BLOCK)[:, None] + within
        is_earlier = within < offset[:, None]
        is_image = self._modes[np.where(is_earlier, near, 0)] == MODE_IMAGE
        found: np.ndarray = self._before[block] + (is_image & is_earlier).sum(axis=1)
        return found

    def of(self, piece: int) -> tuple[int, int]:
        """Width and height of the image that a piece is."""
        (number,) = self.numbers(np.array([piece]))
        width, height = self._sides[number].tolist()
        return width, height

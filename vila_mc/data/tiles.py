"""Into which tiles a picture is cut, from its width and height alone.

The rule is ``dynamic_preprocess`` of InternVL (arXiv 2404.16821), which NVILA (arXiv 2412.04468)
uses, too: of all grids of at most ``most`` tiles the one whose shape is closest to the picture's;
of two that are as close, the larger where the picture has more than half of its pixels. The picture
is stretched to the grid and cut; behind its tiles comes a thumbnail, the whole picture as one more
tile, unless the grid is a single tile.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from vila_mc.config.model import VisionConfig


@dataclass(frozen=True, slots=True)
class Tiling:
    """How pictures are cut for one vision tower."""

    side: int
    """Pixels of a tile's side."""
    most: int
    """Tiles of the largest grid, the thumbnail not counted."""
    has_thumbnail: bool

    @classmethod
    def of(cls, vision: VisionConfig) -> Self | None:
        """The tiling of a tower; None where every picture becomes one square."""
        if vision.image_mode != "tiles":
            return None
        return cls(vision.image_size, vision.max_tiles, vision.thumbnail)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of the tiles of a picture of so many pixels."""
        return _grid(self, width, height)

    def count(self, width: int, height: int) -> int:
        """Tiles of a picture of so many pixels, the thumbnail included."""
        columns, rows = self.grid(width, height)
        return columns * rows + (self.has_thumbnail and columns * rows > 1)

    def counts(self, sides: np.ndarray) -> np.ndarray:
        """Tiles of many pictures, the thumbnail included.

        Args:
            sides: [n, 2] integers, width and height of each, at least 1.

        Returns:
            [n] int64.
        """
        tiles = self._grids(sides).prod(axis=1)
        return tiles + (self.has_thumbnail & (tiles > 1))

    def _grids(self, sides: np.ndarray) -> np.ndarray:
        """[n, 2] int64 columns and rows."""
        width, height = sides.astype(np.float64).T
        aspect, area = width / height, width * height
        best = np.ones((len(sides), 2), np.int64)
        distance = np.full(len(sides), np.inf)
        for columns, rows in _grids_in_order(self.most):
            apart = np.abs(aspect - columns / rows)
            is_large = area > 0.5 * self.side * self.side * columns * rows
            better = (apart < distance) | ((apart == distance) & is_large)
            best[better] = columns, rows
            distance = np.minimum(distance, apart)
        return best


@lru_cache(maxsize=65536)
def _grid(tiling: Tiling, width: int, height: int) -> tuple[int, int]:
    ((columns, rows),) = tiling._grids(np.array([[width, height]])).tolist()
    return columns, rows


@lru_cache(maxsize=8)
def _grids_in_order(most: int) -> list[tuple[int, int]]:
    """(columns, rows) of every grid, those of few tiles first."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))

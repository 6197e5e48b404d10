"""Pictures of many shapes for the tests of tiles, and a model that cuts them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tests.support.reference_tiles import reference_grid
from vila_mc.config.model import ModelConfig
from vila_mc.flow import ImagePiece

NEWLINE = 13
SIDES = [(40, 30), (60, 20), (200, 57), (56, 56), (30, 300), (280, 110), (1, 2), (113, 112)]
"""Width and height of pictures."""
MOST = 6
"""Tiles of one of them."""


def cut_into_tiles(model: ModelConfig) -> ModelConfig:
    """The same model with images in up to ``MOST`` tiles and a thumbnail."""
    return replace(model, vision=replace(model.vision, image_mode="tiles", max_tiles=MOST))


def with_newline(model: ModelConfig) -> ModelConfig:
    """The same model with a newline behind every tile."""
    return replace(model, vision=replace(model.vision, tile_newline=NEWLINE))


def num_tiles(width: int, height: int, most: int = MOST, thumbnail: bool = True) -> int:
    """Tiles of a picture by the reference's rule, of 56 pixels."""
    columns, rows = reference_grid(width, height, 56, most)
    return columns * rows + (thumbnail and columns * rows > 1)


def picture(make_image: Callable[..., bytes], size: tuple[int, int], seed: int = 0) -> ImagePiece:
    """A picture of a size, as a piece of a sample."""
    return ImagePiece(np.frombuffer(make_image(*size, seed=seed), np.uint8), f"{size}", size)

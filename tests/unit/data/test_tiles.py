"""Pictures cut into tiles: the rule, the pixels, and the microbatch that they make."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.pieces import text_piece
from tests.support.reference_tiles import reference_grid, reference_tiles
from tests.support.tiles import MOST, NEWLINE, SIDES, num_tiles, picture, with_newline
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate, positions_of
from vila_mc.data.images import load_squares
from vila_mc.data.tiles import Tiling
from vila_mc.flow import ImagePiece, Piece


@settings(deadline=None, max_examples=60)
@given(
    sides=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20),
    side=st.sampled_from([28, 336, 448]),
    most=st.integers(1, 40),
    thumbnail=st.booleans(),
)
def test_the_rule(sides: list[tuple[int, int]], side: int, most: int, thumbnail: bool) -> None:
    tiling = Tiling(side, most, thumbnail)
    exact = [(n * columns, n * rows) for columns, rows in sides for n in (1, 2)]  # ties by size
    for width, height in (sides := [*sides, *exact]):
        assert tiling.grid(width, height) == reference_grid(width, height, side, most)
    expected = [
        c * r + (thumbnail and c * r > 1)
        for c, r in (reference_grid(width, height, side, most) for width, height in sides)
    ]
    assert tiling.counts(np.array(sides)).tolist() == expected
    assert [tiling.count(*each) for each in sides] == expected


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((300, 100), (3, 1)),
        ((100, 300), (1, 3)),
        ((100, 100), (2, 2)),  # more than half of 2 x 2 tiles of 56 pixels
        ((79, 79), (1, 1)),  # less than half of them
        ((5, 5), (1, 1)),
        ((10_000, 100), (6, 1)),
    ],
)
def test_known_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert Tiling(56, 6, True).grid(*size) == grid


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("thumbnail", [True, False])
def test_pixels_equal_the_reference(
    make_image: Callable[..., bytes], cut: ModelConfig, size: tuple[int, int], thumbnail: bool
) -> None:
    data = make_image(*size)
    vision = replace(cut.vision, thumbnail=thumbnail)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    expected = reference_tiles(image, 56, MOST, thumbnail=thumbnail)
    found = load_squares(data + bytes(3), vision, sides=size)
    assert found.dtype == np.uint8
    assert len(found) == vision_tiles(vision.thumbnail, size)
    np.testing.assert_array_equal(found, [np.asarray(tile).transpose(2, 0, 1) for tile in expected])


def vision_tiles(thumbnail: bool, size: tuple[int, int]) -> int:
    return num_tiles(*size, thumbnail=thumbnail)


@pytest.mark.parametrize("mode", ["crop", "pad", "resize"])
def test_other_modes_give_one_square(
    make_image: Callable[..., bytes], model: ModelConfig, mode: str
) -> None:
    vision = replace(model.vision, image_mode=mode)
    assert load_squares(make_image(90, 30), vision, sides=(1, 1)).shape == (1, 3, 56, 56)


@pytest.mark.parametrize("newline", [False, True])
def test_tiles_stand_side_by_side(
    make_image: Callable[..., bytes], cut: ModelConfig, newline: bool
) -> None:
    """A picture of 3 x 1 tiles and a thumbnail, and a small one of a single tile."""
    model = with_newline(cut) if newline else cut
    images = [picture(make_image, (168, 56)), picture(make_image, (20, 20), seed=1)]
    sample: list[Piece] = [text_piece((1, 5), False), *images, text_piece((7, 2), True)]
    batch = collate([[sample]], model, 40, needs_images=True)
    tile, block = (5, [0, 0, 0, 0, NEWLINE]) if newline else (4, [0] * 4)
    assert batch.image_starts.tolist() == [[0, 2 + tile * n] for n in range(5)]
    assert batch.tokens[0, : 4 + 5 * tile].tolist() == [1, 5, *block * 5, 7, 2]
    end = 2 + 5 * tile
    assert batch.labels[0].tolist() == [-100] * (end - 1) + [7, 2] + [-100] * (39 - end)
    expected = np.concatenate([load_squares(bytes(one.data), model.vision) for one in images])
    np.testing.assert_array_equal(batch.images.numpy(), expected)
    assert batch.sample_lengths == ((sum(positions_of(piece, model) for piece in sample),),)


@pytest.mark.parametrize("newline", [False, True])
def test_a_picture_whose_tiles_do_not_all_fit_ends_the_sample(
    make_image: Callable[..., bytes], cut: ModelConfig, newline: bool
) -> None:
    model = with_newline(cut) if newline else cut
    wide = picture(make_image, (168, 56))
    needed = 4 * model.tile_positions()
    sample: list[Piece] = [text_piece((1, 5, 6), True), wide, text_piece((7,), True)]
    for length, fits in ((3 + needed - 1, False), (3 + needed, True)):
        batch = collate([[sample]], model, length, needs_images=True)
        assert len(batch.images) == len(batch.image_starts) == 4 * fits
        assert batch.sample_lengths == ((length if fits else 3,),)
        assert batch.labels[0, length - 1] == (7 if fits else -100)


def test_tiles_are_images_to_the_model(
    make_image: Callable[..., bytes], cut: ModelConfig, model: ModelConfig
) -> None:
    """A picture in tiles is the same microbatch as its tiles, each an image of its own."""
    whole = picture(make_image, (120, 110))
    apart = []
    for pixels in load_squares(bytes(whole.data), cut.vision):
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        apart.append(ImagePiece(buffer.getvalue(), "a tile"))
    assert len(apart) == 5
    begin, end = text_piece((1, 5), False), text_piece((7, 2), True)
    one = collate([[[begin, whole, end]]], cut, 30, needs_images=True)
    squares = replace(model, vision=replace(model.vision, image_mode="resize"))
    other = collate([[[begin, *apart, end]]], squares, 30, needs_images=True)
    for name in ("tokens", "labels", "images", "image_starts"):
        np.testing.assert_array_equal(getattr(one, name).numpy(), getattr(other, name).numpy())

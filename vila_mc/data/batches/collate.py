"""Stored samples to a microbatch: laid out in rows, labels shifted, images decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vila_mc.config.data import BadImage
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.slots import Empty
from vila_mc.data.images import load_squares, plain_image
from vila_mc.data.tiles import Tiling
from vila_mc.errors import DataError
from vila_mc.flow import IGNORE_LABEL, ImagePiece, Microbatch, Piece

Sample = Sequence[Piece]


@dataclass(frozen=True, slots=True)
class _LaidOut:
    """One sample along the sequence."""

    tokens: np.ndarray
    """[positions] int64."""
    labels: np.ndarray
    """[positions] int64."""
    image_starts: list[int]
    """First position of each tile: of each image, where images are not cut."""
    images: list[ImagePiece]


def collate(
    rows: Sequence[Sequence[Sample]],
    model: ModelConfig,
    sequence_length: int,
    needs_images: bool,
    on_bad_image: BadImage = "stop",
    empty: Empty = np.empty,
) -> Microbatch:
    """Lay samples out in rows of ``sequence_length`` positions.

    Each image takes ``model.visual_tokens()`` positions; where images are cut into tiles, each tile
    does, and one more for the newline behind it, if there is one. A sample longer than a row is
    cut; where an image does not fit whole, it and everything after it is dropped. The last position
    of a sample predicts nothing, or, where it was cut, the first token beyond it.

    Args:
        rows: samples of each row, as pieces.
        model: says how large an image is, how it becomes square or is cut, and how many positions
            it takes.
        sequence_length: positions per row (s).
        needs_images: decode the images. Otherwise ``images`` is empty, but ``image_starts`` is not.
        on_bad_image: what to do about an image that cannot be decoded.
        empty: makes the memory that the tensors lie in.

    Returns:
        A microbatch of ``len(rows)`` rows.

    Raises:
        DataError: an image cannot be decoded, and that is to stop the run.
        ValueError: the samples of a row are longer than it.
    """
    tokens = empty((len(rows), sequence_length), np.int64)
    labels = empty((len(rows), sequence_length), np.int64)
    tokens.fill(0)
    labels.fill(IGNORE_LABEL)
    laid_out = [[_lay_out(pieces, model, sequence_length) for pieces in row] for row in rows]
    starts: list[tuple[int, int]] = []
    for row, samples in enumerate(laid_out):
        end = 0
        for sample in samples:
            start, end = end, end + len(sample.tokens)
            tokens[row, start:end] = sample.tokens
            labels[row, start:end] = sample.labels
            starts += [(row, start + at) for at in sample.image_starts]
    image_starts = empty((len(starts), 2), np.int64)
    image_starts[:] = np.reshape(starts, (-1, 2))
    images = [image for row in laid_out for sample in row for image in sample.images]
    pixels, substitutes = _decode(images if needs_images else [], model, on_bad_image, empty)
    return Microbatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        images=torch.from_numpy(pixels),
        image_starts=torch.from_numpy(image_starts),
        num_samples=sum(map(len, rows)),
        sample_lengths=tuple(tuple(len(sample.tokens) for sample in row) for row in laid_out),
        substitutes=substitutes,
    )


def positions_of(piece: Piece, model: ModelConfig) -> int:
    """Positions that a piece takes in the sequence."""
    if isinstance(piece, ImagePiece):
        return _num_tiles(piece, model) * model.tile_positions()
    return len(piece.ids)


def _num_tiles(image: ImagePiece, model: ModelConfig) -> int:
    tiling = Tiling.of(model.vision)
    if tiling is None:
        return 1
    assert image.sides is not None, "an image to be cut has known sides"
    return tiling.count(*image.sides)


def _lay_out(pieces: Sample, model: ModelConfig, longest: int) -> _LaidOut:
    tile, newline = model.tile_positions(), model.vision.tile_newline
    sizes = [positions_of(piece, model) for piece in pieces]
    # One position more than there is room for: the label of the last position.
    stream = np.zeros(min(sum(sizes), longest) + 1, np.int64)
    is_trained = np.zeros(len(stream), bool)
    starts: list[int] = []
    images: list[ImagePiece] = []
    end = 0
    for piece, size in zip(pieces, sizes, strict=True):
        if isinstance(piece, ImagePiece):
            if end + size > longest:
                break
            starts += range(end, end + size, tile)
            images.append(piece)
            if newline is not None:
                stream[end + tile - 1 : end + size : tile] = newline
        else:
            ids = piece.ids[: longest + 1 - end]
            stream[end : end + len(ids)] = ids
            is_trained[end : end + len(ids)] = piece.is_trained
        end += size
        if end > longest:
            break
    end = min(end, longest)
    labels = np.where(is_trained[1:], stream[1:], IGNORE_LABEL)
    return _LaidOut(stream[:end], labels[:end], starts, images)


def _decode(
    images: Sequence[ImagePiece], model: ModelConfig, on_bad_image: BadImage, empty: Empty
) -> tuple[np.ndarray, tuple[str, ...]]:
    """[n, 3, y, x] uint8 pixels of all tiles; a message for each image that was replaced."""
    vision, size = model.vision, model.vision.image_size
    tiles = [_num_tiles(image, model) for image in images]
    pixels = empty((sum(tiles), 3, size, size), np.uint8)
    messages: list[str] = []
    end = 0
    for image, count in zip(images, tiles, strict=True):
        start, end = end, end + count
        try:
            pixels[start:end] = load_squares(bytes(image.data), vision, image.name, image.sides)
        except DataError as error:
            if on_bad_image == "stop":
                raise
            pixels[start:end] = plain_image(size, vision.mean_colour())
            messages.append(str(error))
    return pixels, tuple(messages)

"""Stored samples to a microbatch: one sample per row, labels shifted, images decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vila_mc.config.model import ModelConfig
from vila_mc.data.images import load_image
from vila_mc.data.indexed_format import StoredImage, StoredPiece
from vila_mc.flow import IGNORE_LABEL, Microbatch


@dataclass(frozen=True, slots=True)
class _Row:
    """One sample laid out along the sequence."""

    tokens: np.ndarray
    """[s] int64."""
    labels: np.ndarray
    """[s] int64."""
    image_starts: list[int]
    images: list[StoredImage]


def collate(
    samples: Sequence[Sequence[StoredPiece]],
    model: ModelConfig,
    sequence_length: int,
    needs_images: bool,
) -> Microbatch:
    """Lay samples out as rows of ``sequence_length`` positions.

    Each image takes ``model.visual_tokens()`` positions. A sample that is too long is cut; where an
    image does not fit whole, it and everything after it is dropped. The last position of a row
    that was cut predicts the first token beyond it.

    Args:
        samples: pieces of each sample.
        model: says how large an image is, how it becomes square, and how many positions it takes.
        sequence_length: positions per row (s).
        needs_images: decode the images. Otherwise ``images`` is empty, but ``image_starts`` is not.

    Returns:
        A microbatch of ``len(samples)`` rows.

    Raises:
        DataError: an image cannot be decoded.
    """
    rows = [_lay_out(pieces, model.visual_tokens(), sequence_length) for pieces in samples]
    starts = [(row, start) for row, laid in enumerate(rows) for start in laid.image_starts]
    images = [image for laid in rows for image in laid.images] if needs_images else []
    return Microbatch(
        tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
        labels=torch.from_numpy(np.stack([row.labels for row in rows])),
        images=torch.from_numpy(_decode(images, model)),
        image_starts=torch.tensor(starts, dtype=torch.int64).reshape(-1, 2),
        num_samples=len(rows),
    )


def _lay_out(pieces: Sequence[StoredPiece], visual_tokens: int, length: int) -> _Row:
    # One position more than the row: the label of its last position.
    stream = np.zeros(length + 1, np.int64)
    is_trained = np.zeros(length + 1, bool)
    starts: list[int] = []
    images: list[StoredImage] = []
    end = 0
    for piece in pieces:
        if isinstance(piece, StoredImage):
            if end + visual_tokens > length:
                break
            starts.append(end)
            images.append(piece)
            end += visual_tokens
            continue
        ids = piece.ids[: length + 1 - end]
        stream[end : end + len(ids)] = ids
        is_trained[end : end + len(ids)] = piece.is_trained
        end += len(ids)
        if len(ids) < len(piece.ids):
            break
    labels = np.where(is_trained[1:], stream[1:], IGNORE_LABEL)
    return _Row(stream[:length], labels, starts, images)


def _decode(images: Sequence[StoredImage], model: ModelConfig) -> np.ndarray:
    size, mode = model.vision.image_size, model.vision.image_mode
    pixels = np.empty((len(images), 3, size, size), np.uint8)
    for index, image in enumerate(images):
        pixels[index] = load_image(image.data.tobytes(), size, mode, image.name)
    return pixels

"""Rows: where images stand, what each position predicts, and where a long sample is cut."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny import tiny_run
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.images import load_image
from vila_mc.errors import DataError
from vila_mc.flow import ImagePiece, Piece, TextPiece

_ = -100


def text(*ids: int, trained: bool = True) -> TextPiece:
    return TextPiece(np.asarray(ids, np.int32), trained)


@pytest.fixture
def image(make_image: Callable[..., bytes]) -> ImagePiece:
    return ImagePiece(np.frombuffer(make_image() + b"\0", np.uint8), "the image of a test")


def rows(
    model: ModelConfig, length: int, *samples: list[Piece]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    batch = collate([[sample] for sample in samples], model, length, needs_images=False)
    return batch.tokens.tolist(), batch.labels.tolist(), batch.image_starts.tolist()


def test_labels_are_the_next_trained_token(model: ModelConfig, image: ImagePiece) -> None:
    pieces = [text(1, 5, trained=False), image, text(6, trained=False), text(7, 2)]
    tokens, labels, starts = rows(model, 12, pieces)
    assert tokens == [[1, 5, 0, 0, 0, 0, 6, 7, 2, 0, 0, 0]]
    assert labels == [[_, _, _, _, _, _, 7, 2, _, _, _, _]]
    assert starts == [[0, 2]]


def test_last_visual_position_predicts_the_caption(model: ModelConfig, image: ImagePiece) -> None:
    _tokens, labels, starts = rows(model, 8, [text(1, trained=False), image, text(7, 2)])
    assert labels == [[_, _, _, _, 7, 2, _, _]]
    assert starts == [[0, 1]]


def test_position_before_an_image_predicts_nothing(model: ModelConfig, image: ImagePiece) -> None:
    _tokens, labels, _starts = rows(model, 8, [text(1, 5), image, text(6)])
    assert labels == [[5, _, _, _, _, 6, _, _]]


def test_text_alone_is_trained_throughout(model: ModelConfig) -> None:
    assert rows(model, 4, [text(1, 5, 6, 2)])[1] == [[5, 6, 2, _]]


def test_long_text_is_cut_and_its_last_label_kept(model: ModelConfig) -> None:
    for ids in ((1, 5, 6, 7, 8), (1, 5, 6, 7, 8, 9, 2)):
        tokens, labels, _starts = rows(model, 4, [text(*ids)])
        assert (tokens, labels) == ([[1, 5, 6, 7]], [[5, 6, 7, 8]])


def test_text_after_a_cut_is_dropped(model: ModelConfig, image: ImagePiece) -> None:
    pieces = [text(1, 5, 6, 7, 8, 9), image, text(3)]
    assert rows(model, 5, pieces) == ([[1, 5, 6, 7, 8]], [[5, 6, 7, 8, 9]], [])


@pytest.mark.parametrize("length", [5, 6, 7, 8])
def test_image_that_does_not_fit_ends_the_sample(
    model: ModelConfig, image: ImagePiece, length: int
) -> None:
    pieces = [text(1, 5, 6, 7, 8), image, text(9, 2)]
    tokens, labels, starts = rows(model, length, pieces)
    assert tokens == [[1, 5, 6, 7, 8] + [0] * (length - 5)]
    assert labels == [[5, 6, 7, 8] + [_] * (length - 4)]
    assert starts == []


def test_image_that_just_fits(model: ModelConfig, image: ImagePiece) -> None:
    tokens, labels, starts = rows(model, 5, [text(1, trained=False), image, text(9, 2)])
    assert (tokens, labels, starts) == ([[1, 0, 0, 0, 0]], [[_, _, _, _, 9]], [[0, 1]])


def test_pixels_of_several_rows_come_in_order(
    model: ModelConfig, make_image: Callable[..., bytes]
) -> None:
    data = [make_image(seed=seed) for seed in range(3)]
    images = [ImagePiece(np.frombuffer(one, np.uint8), "x") for one in data]
    samples = [[text(1), images[0], images[1], text(2)], [text(1, 2)], [text(1), images[2]]]
    batch = collate([[sample] for sample in samples], model, 12, needs_images=True)
    assert batch.image_starts.tolist() == [[0, 1], [0, 5], [2, 1]]
    expected = np.stack([load_image(one, 56, "crop") for one in data])
    np.testing.assert_array_equal(batch.images.numpy(), expected)
    assert (batch.num_samples, batch.tokens.dtype, batch.images.dtype) == (
        3,
        torch.int64,
        torch.uint8,
    )


@pytest.mark.parametrize("needs_images", [True, False])
def test_microbatch_without_images(model: ModelConfig, needs_images: bool) -> None:
    batch = collate([[[text(1, 2)]]], model, 4, needs_images)
    assert batch.images.shape == (0, 3, 56, 56)
    assert batch.image_starts.shape == (0, 2)


def test_stage_without_vision_still_knows_where_images_stand(
    model: ModelConfig, image: ImagePiece
) -> None:
    batch = collate([[[text(1), image]]], model, 8, needs_images=False)
    assert batch.images.shape == (0, 3, 56, 56)
    assert batch.image_starts.tolist() == [[0, 1]]


def test_image_that_no_longer_decodes(model: ModelConfig) -> None:
    broken = ImagePiece(np.zeros(8, np.uint8), "the image of set sample 4")
    with pytest.raises(DataError, match="the image of set sample 4 is not an image"):
        collate([[[broken]]], model, 8, needs_images=True)


def test_packed_samples_predict_nothing_of_each_other(
    model: ModelConfig, image: ImagePiece
) -> None:
    samples = [[text(1, 5, 6)], [text(1, trained=False), image, text(7, 2)], [text(3)]]
    batch = collate([samples, [[text(4, 8)]]], model, 13, needs_images=True)
    assert batch.tokens.tolist() == [[1, 5, 6, 1, 0, 0, 0, 0, 7, 2, 3, 0, 0], [4, 8] + [0] * 11]
    assert batch.labels.tolist()[0] == [5, 6, _, _, _, _, _, 7, 2, _, _, _, _]
    assert batch.labels.tolist()[1] == [8] + [_] * 12
    assert batch.image_starts.tolist() == [[0, 4]]
    assert batch.sample_lengths == ((3, 7, 1), (2,))
    assert (batch.num_samples, batch.filled_positions(), batch.is_packed()) == (4, 13, True)


def test_a_row_that_cannot_hold_its_samples(model: ModelConfig) -> None:
    with pytest.raises(ValueError, match="could not broadcast"):
        collate([[[text(1, 2)], [text(3, 4)]]], model, 3, needs_images=False)


@pytest.mark.parametrize(
    ("family", "mean", "colour"),
    [
        ("clip", None, [122, 116, 104]),
        ("siglip", None, [127, 127, 127]),
        ("clip", (0.0, 0.5, 1.0), [0, 127, 255]),
    ],
)
def test_images_are_padded_in_the_mean_colour_of_their_tower(
    family: str, mean: tuple[float, ...] | None, colour: list[int]
) -> None:
    """As LLaVA's and VILA's public code pads, whatever the tower."""
    tiny = tiny_run().model
    vision = replace(tiny.vision, family=family, channel_mean=mean, image_mode="pad")
    wide = io.BytesIO()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(wide, "PNG")
    piece = ImagePiece(np.frombuffer(wide.getvalue(), np.uint8), "wide")
    batch = collate([[[piece]]], replace(tiny, vision=vision), 32, needs_images=True)
    assert batch.images[0, :, 0, 0].tolist() == colour
    middle = vision.image_size // 2
    assert batch.images[0, :, middle, 0].tolist() == [255, 0, 0]

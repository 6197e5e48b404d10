"""Plain-torch kernels against formulas written out index by index."""

import pytest
import torch

from vila_mc.kernels.ops import downsample_gather, splice_visual
from vila_mc.kernels.reference import normalize_images


@pytest.mark.parametrize(("grid", "factor"), [(4, 2), (3, 2), (5, 2), (1, 2), (6, 3), (7, 3)])
def test_downsample_gather_puts_every_channel_where_the_formula_says(
    grid: int, factor: int
) -> None:
    images, width = 2, 3
    patches = torch.randn(images, grid * grid, width)
    side = -(-grid // factor)
    expected = torch.zeros(images, side * side, factor * factor * width)
    for row in range(grid):
        for col in range(grid):
            token = (row // factor) * side + col // factor
            for channel in range(width):
                place = (factor * (row % factor) + col % factor) * width + channel
                expected[:, token, place] = patches[:, row * grid + col, channel]
    assert torch.equal(downsample_gather(patches, factor), expected)


def test_downsample_gather_hands_gradients_back() -> None:
    patches = torch.randn(1, 9, 2, requires_grad=True)
    downsample_gather(patches, 2).sum().backward()
    assert torch.equal(patches.grad, torch.ones_like(patches))


def test_downsample_gather_refuses_what_is_no_square() -> None:
    with pytest.raises(ValueError, match="12 patches are not a square grid"):
        downsample_gather(torch.zeros(1, 12, 2), 2)


def _text_and_visual() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    text = torch.randn(10, 2, 4, requires_grad=True)
    visual = torch.randn(3, 3, 4, requires_grad=True)
    return text, visual, torch.tensor([[0, 1], [0, 4], [1, 7]])


def test_splice_puts_each_image_at_its_row_and_start() -> None:
    text, visual, starts = _text_and_visual()
    expected = text.detach().clone()
    for image, (row, start) in enumerate(starts.tolist()):
        expected[start : start + 3, row] = visual.detach()[image]
    before = text.detach().clone()
    assert torch.equal(splice_visual(text, visual, starts), expected)
    assert torch.equal(text, before)


def test_splice_gives_text_no_gradient_at_image_positions() -> None:
    text, visual, starts = _text_and_visual()
    weights = torch.randn(10, 2, 4)
    (splice_visual(text, visual, starts) * weights).sum().backward()
    for image, (row, start) in enumerate(starts.tolist()):
        assert torch.equal(visual.grad[image], weights[start : start + 3, row])
        assert not text.grad[start : start + 3, row].any()
        weights[start : start + 3, row] = 0
    assert torch.equal(text.grad, weights)


def test_splice_keeps_the_number_format_of_the_text() -> None:
    text, visual, starts = _text_and_visual()
    assert splice_visual(text.bfloat16(), visual, starts).dtype == torch.bfloat16


@pytest.mark.parametrize("places", [0, 2, 4])
def test_splice_refuses_another_number_of_images(places: int) -> None:
    text, visual, _ = _text_and_visual()
    with pytest.raises(ValueError, match=f"places for {places} images; vision gave 3 x 3 tokens"):
        splice_visual(text, visual, torch.zeros(places, 2, dtype=torch.int64))


def test_normalize_images_equals_clips_formula() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)
    normal = normalize_images(images, torch.float32)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / deviation[channel]
        assert torch.allclose(normal[:, channel].double(), expected, atol=1e-6)
    assert torch.equal(normalize_images(images, torch.bfloat16), normal.bfloat16())


def test_normalize_images_takes_no_image() -> None:
    assert normalize_images(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.float32).numel() == 0

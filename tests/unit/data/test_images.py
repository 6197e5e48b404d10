"""Decoding: equal to transformers' Pillow processor, and clear about what cannot be read."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vila_mc.config.families import CLIP
from vila_mc.data.images import check_image, check_max_pixels, load_image, shrink_image
from vila_mc.errors import ConfigError, DataError

Make = Callable[..., bytes]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(mode: str, width: int = 37, height: int = 23) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = np.random.default_rng(5).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze(), mode)


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (30, 31), (56, 56), (200, 57), (57, 200)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_crop_equals_transformers(make_image: Make, size: tuple[int, int], format: str) -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        do_rescale=False,
        do_normalize=False,
    )
    assert (*processor.image_mean, *processor.image_std) == (*CLIP.channel_mean, *CLIP.channel_std)
    data = make_image(*size, format)
    expected = np.asarray(processor(Image.open(io.BytesIO(data)))["pixel_values"][0])
    np.testing.assert_array_equal(load_image(data, 56, "crop"), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_crop_equals_transformers_in_other_modes(mode: str) -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        do_rescale=False,
        do_normalize=False,
    )
    data = encoded(noise(mode), "TIFF" if mode == "CMYK" else "PNG")
    expected = np.asarray(processor(Image.open(io.BytesIO(data)))["pixel_values"][0])
    np.testing.assert_array_equal(load_image(data, 28, "crop"), expected)


def test_resize_is_direct(make_image: Make) -> None:
    data = make_image(64, 20)
    direct = Image.open(io.BytesIO(data)).resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        load_image(data, 28, "resize"), np.asarray(direct).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_pad_centres_on_the_colour(size: tuple[int, int]) -> None:
    pixels = load_image(
        encoded(Image.new("RGB", size, (255, 0, 0))), 60, "pad", pad_colour=(122, 116, 104)
    )
    if size[0] < size[1]:
        pixels = pixels.transpose(0, 2, 1)
    assert pixels[:, 0, 30].tolist() == pixels[:, 59, 30].tolist() == [122, 116, 104]
    assert pixels[:, 30, 0].tolist() == [255, 0, 0]
    reds = (pixels[0, :, 30] == 255).nonzero()[0]
    assert reds[0] + reds[-1] == 59


def test_result_is_channels_first_and_contiguous(make_image: Make) -> None:
    pixels = load_image(make_image(), 14, "crop")
    assert pixels.shape == (3, 14, 14)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert np.unique(load_image(encoded(grey), 4, "crop")).tolist() == [0x80]


def test_transparent_palette_shows_white() -> None:
    image = Image.new("P", (8, 8), 3)
    data = encoded(image, "GIF", transparency=3)
    assert np.unique(load_image(data, 4, "crop")).tolist() == [255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_zero_bytes_after_the_image_do_no_harm(make_image: Make, format: str) -> None:
    data = make_image(format=format)
    assert check_image(data + bytes(3), "x") == (40, 30)
    np.testing.assert_array_equal(
        load_image(data + bytes(3), 28, "crop"), load_image(data, 28, "crop")
    )


def test_check_refuses(make_image: Make) -> None:
    whole = make_image(400, 300, "JPEG")
    for data, message in [
        (b"", "pic is an empty file"),
        (b"junk", "pic is not an image that can be read"),
        (whole[:-100], "pic is damaged"),
        (make_image(201, 1), "pic is 201 x 1 pixels: one side is more than 200"),
        (encoded(noise("RGB"), "PPM"), "pic is not an image that can be read"),
    ]:
        with pytest.raises(DataError, match=message):
            check_image(data, "pic")


def test_check_refuses_bombs_before_decoding(make_image: Make) -> None:
    with pytest.raises(DataError, match="= 1,200 pixels; at most 1,199 are allowed"):
        check_image(make_image(), "pic", 1199)
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    bomb += struct.pack(">II", zlib.crc32(header), 9) + b"IDAT" + bytes(13)
    with pytest.raises(DataError, match="the most that Pillow decodes"):
        check_image(bomb, "pic")


def test_load_names_the_image(make_image: Make) -> None:
    with pytest.raises(DataError, match="set sample 3 is damaged"):
        load_image(make_image(400, 300, "JPEG")[:900], 28, "crop", "set sample 3")


@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_impossible_limits(value: int) -> None:
    with pytest.raises(ConfigError, match="max_pixels is"):
        check_max_pixels(value)


def test_shrinking_makes_the_shorter_side_small_and_keeps_small_images(make_image: Make) -> None:
    small = make_image(30, 40, "JPEG")
    assert shrink_image(small, 30, "pic") == (small, (30, 40))
    data, sides = shrink_image(make_image(400, 300), 56, "pic")
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", sides) == ("JPEG", (75, 56))
    expected = Image.open(io.BytesIO(make_image(400, 300))).resize(
        (75, 56), Image.Resampling.BICUBIC
    )
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 1.5
    assert shrink_image(make_image(400, 300), 56, "pic") == (data, sides)
    with pytest.raises(DataError, match="at most 1,199 are allowed"):
        shrink_image(make_image(), 9, "pic", 1199)

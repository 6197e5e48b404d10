"""Encoded images to square RGB arrays, the way CLIP saw them in its own training, or to tiles.

Pixels stay 8-bit here; the model scales and normalises them on its device.
"""

import io

import numpy as np
from PIL import Image

from vila_mc.config.families import ImageMode
from vila_mc.config.model import VisionConfig
from vila_mc.data.image_codec import MAX_MAX_PIXELS, decode_image, open_image
from vila_mc.data.tiles import Tiling
from vila_mc.errors import ConfigError, DataError

DEFAULT_MAX_PIXELS = 64_000_000
"""Images with more pixels are refused: a small file can unfold into more than fits in memory."""

_JPEG_QUALITY = 95
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def check_image(data: bytes, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Decode an image once to find out whether training will be able to.

    Args:
        data: the image file.
        name: what to call it in messages.
        max_pixels: most pixels allowed, at most ``MAX_MAX_PIXELS``.

    Returns:
        Width and height in pixels.

    Raises:
        DataError: the file is empty, of an unknown format, damaged, too large or too narrow.
    """
    return _checked(data, name, max_pixels).size


def shrink_image(
    data: bytes, side: int, name: str, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[bytes, tuple[int, int]]:
    """Check an image as ``check_image`` does, and make it small where it is larger than needed.

    Args:
        data: the image file.
        side: pixels of the shorter side. Images without more stay the bytes that they are.
        name: what to call it in messages.
        max_pixels: most pixels allowed, at most ``MAX_MAX_PIXELS``.

    Returns:
        The image file, now a JPEG of quality 95 where it was made smaller; its width and height.

    Raises:
        DataError: as ``check_image``.
    """
    image = _checked(data, name, max_pixels)
    width, height = image.size
    if min(width, height) <= side:
        return data, image.size
    scale = side / min(width, height)
    small = image.resize(
        (max(side, round(width * scale)), max(side, round(height * scale))),
        Image.Resampling.BICUBIC,
    )
    return as_jpeg(small), small.size


def as_jpeg(image: Image.Image) -> bytes:
    """A JPEG file of quality 95, its colours at full resolution."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _checked(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The decoded image, in RGB."""
    image = open_image(data, name)
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{name} is {width} x {height} = {width * height:,} pixels; at most {max_pixels:,} are "
            "allowed. Make it smaller or raise max_pixels."
        )
    return decode_image(image, name)


def load_squares(
    data: bytes,
    vision: VisionConfig,
    name: str = "the image",
    sides: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode an image to what a vision tower sees of it: one square, or its tiles.

    Args:
        data: the image file; zero bytes after its end do no harm.
        vision: how large a square is, and how an image becomes one or is cut.
        name: what to call it in messages.
        sides: width and height that it must have; any if None.

    Returns:
        [n, 3, y, x] uint8, y = x = ``vision.image_size``; n is 1 unless the image is cut. Tiles
        come row by row, then the thumbnail.

    Raises:
        DataError: the image cannot be decoded, or has other sides.
    """
    tiling = Tiling.of(vision)
    if tiling is None:
        colour = vision.mean_colour()
        return load_image(data, vision.image_size, vision.image_mode, name, pad_colour=colour)[None]
    image = decode_image(open_image(data, name), name)
    if sides is not None and image.size != sides:
        raise DataError(
            f"{name} is {image.width} x {image.height} pixels, but {sides[0]} x {sides[1]} by the "
            "index: one of the two is damaged. Preprocess the raw data again."
        )
    return _cut(image, tiling)


def load_image(
    data: bytes,
    size: int,
    mode: ImageMode,
    name: str = "the image",
    *,
    pad_colour: Colour | None = None,
) -> np.ndarray:
    """Decode an image and make it square.

    Args:
        data: the image file; zero bytes after its end do no harm.
        size: side of the result, in pixels.
        mode: crop (short side to ``size``, centre crop), pad (square canvas, image centred), resize
            (both sides to ``size``); not tiles, see ``load_squares``.
        name: what to call it in messages.
        pad_colour: of the canvas; only ``pad`` needs it.

    Returns:
        [3, y, x] uint8, y = x = ``size``; channels red, green, blue.

    Raises:
        DataError: the image cannot be decoded.

    Source:
        VILA, arXiv 2312.07533; crop equals transformers' CLIPImageProcessorPil before rescaling.
    """
    assert mode != "tiles", "tiles are several squares"
    image = decode_image(open_image(data, name), name)
    if mode == "crop":
        image = _crop(image, size)
    else:
        canvas = _pad(image, pad_colour) if mode == "pad" else image
        image = canvas.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def plain_image(size: int, colour: Colour) -> np.ndarray:
    """One colour everywhere: [3, size, size] uint8."""
    return np.broadcast_to(np.asarray(colour, np.uint8)[:, None, None], (3, size, size))


def check_max_pixels(max_pixels: int) -> None:
    """Refuse a limit on pixels that cannot be kept. Raises ConfigError."""
    if not 0 < max_pixels <= MAX_MAX_PIXELS:
        raise ConfigError(
            f"max_pixels is {max_pixels}; it must lie between 1 and {MAX_MAX_PIXELS}, the most "
            "that Pillow decodes.",
            option="max_pixels",
        )


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to ``size``, centre crop."""
    width, height = image.size
    longer = int(size * max(width, height) / min(width, height))
    start = (longer - size) // 2
    if width <= height:
        image = image.resize((size, longer), Image.Resampling.BICUBIC)
        return image.crop((0, start, size, start + size))
    # Pillow resizes along x, then along y. Cropping in between gives the same bytes for less work.
    image = image.resize((longer, height), Image.Resampling.BICUBIC)
    image = image.crop((start, 0, start + size, height))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _pad(image: Image.Image, colour: Colour | None) -> Image.Image:
    assert colour is not None, "pad needs a colour"
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _cut(image: Image.Image, tiling: Tiling) -> np.ndarray:
    """[tiles, 3, y, x] uint8: the tiles of an image row by row, then its thumbnail."""
    side = tiling.side
    columns, rows = tiling.grid(*image.size)
    stretched = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    blocks = np.array(stretched).reshape(rows, side, columns, side, 3)
    tiles = blocks.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
    if tiling.count(*image.size) == len(tiles):
        return tiles
    thumbnail = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    return np.concatenate([tiles, thumbnail.transpose(2, 0, 1)[None]])

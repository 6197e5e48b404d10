"""The one door for image files: which are opened, and how large and slow they may be.

What is decoded is shown as a viewer shows it, or refused by name: transparency on white, 16 bits of
grey by their upper 8, the first frame of an animation. EXIF orientation is ignored, as CLIP's and
LLaVA's pre-processing ignore it, and so are colour profiles.
"""

import io
import re
import struct

import numpy as np
from PIL import ExifTags, Image

from vila_mc.errors import DataError

# The readers of the common formats now rather than when the first image needs them.
Image.preinit()

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow opens many more, and starts other programs for some of them."""
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".gif", ".bmp", ".tif", ".tiff"),
)
"""What their files are called."""
MAX_IMAGE_BYTES = 256 << 20
"""Larger files are not even read."""
MAX_MAX_PIXELS = 2 * 89_478_485
"""Pillow itself refuses to decode more."""
MAX_ASPECT_RATIO = 200
"""Longest side over shortest. A one-pixel line would grow by the image size along its length."""
MAX_SCANS = 100
"""Most scans of a progressive JPEG, which is decoded once for each. Encoders write about ten."""

_SHOWN = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "RGBX", "La", "RGBa")
_REFUSED = {
    "I": "32 bits or signed numbers of grey",
    "F": "floating-point grey",
    "LAB": "Lab colours",
    "HSV": "HSV colours",
}
"""Modes of Pillow that have no agreed way to be shown."""
_EXIF, _EXIF_WITHIN = b"Exif\0\0", 1 << 17
"""What begins the EXIF metadata of a JPEG, and how far from its start it is looked for."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 200_000
"""Of a PNG; what is behind them is cut off. Encoders write a few kilobytes into one."""
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker of JPEG that is followed by a length; the others stand alone."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_DEPTH = "bits of a sample"
"""Our own entry in ``Image.info`` of a PNG: Pillow's modes do not tell 1, 2, 4 and 8 apart."""


def open_image(data: bytes, name: str) -> Image.Image:
    """Read the header of an image file.

    Args:
        data: the file; zero bytes after its end do no harm.
        name: what to call it in messages.

    Raises:
        DataError: it is empty, too large or too narrow, would take too long to decode, or is no
            image of ``FORMATS``.
    """
    if not data:
        raise DataError(f"{name} is an empty file. Fetch it again or drop its record.")
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{name} has more than {MAX_IMAGE_BYTES:,} bytes. Make it smaller.")
    if data.count(b"\xff\xda") > MAX_SCANS and _scans(data) > MAX_SCANS:
        raise DataError(
            f"{name} is a JPEG of more than {MAX_SCANS} scans, which would take minutes to decode. "
            "Drop its record."
        )
    try:
        image: Image.Image = Image.open(io.BytesIO(_pixels_alone(data)), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(
            f"{name} has more than {MAX_MAX_PIXELS:,} pixels, the most that Pillow decodes. Make "
            "it smaller or drop its record."
        ) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise nearly anything on damaged headers
        raise DataError(
            f"{name} is not an image that can be read: none of {', '.join(FORMATS)}, or cut off. "
            "Fetch it again, convert it, or drop its record."
        ) from None
    if image.format == "PNG":
        image.info[_DEPTH] = data[24]
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DataError(
            f"{name} is {width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            "the other. Drop its record."
        )
    return image


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """Decode what ``open_image`` opened, to RGB as a viewer shows it.

    Raises:
        DataError: it is damaged, or of a kind that viewers do not agree about.
    """
    if image.mode not in _SHOWN and not image.mode.startswith("I;16"):
        kind = _REFUSED.get(image.mode, f"mode {image.mode}")
        raise DataError(
            f"{name} holds {kind}, which have no agreed brightness. Convert it to 8 or 16 bits of "
            "grey or colour, or drop its record."
        )
    if _has_deep_colour_key(image):
        raise DataError(
            f"{name} has 16 bits of colour and one colour that is transparent, which 8 bits cannot "
            "tell. Convert it to 8 bits, or drop its record."
        )
    try:
        return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise DataError(f"{name} is damaged: {error}. Fetch it again or drop its record.") from None


def is_turned(data: bytes) -> bool:
    """Whether viewers turn or mirror an image, as its EXIF orientation tells them and not us."""
    if _EXIF not in data[:_EXIF_WITHIN]:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise nearly anything on damaged metadata
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode in ("1", "L") and _png_key(image) is not None):
        image = _grey(image)
    elif image.mode in ("La", "RGBa"):  # multiplied with their transparency
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    image.load()  # before the comparison: convert would copy what is in RGB already
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Grey of more or fewer than 8 bits, with one transparent grey or none, to L or LA.

    Pillow would clip 16 bits, and compare the transparent grey with what it made of the others.
    """
    depth, is_inverted = 16, False
    if image.format == "PNG":
        depth = int(image.info[_DEPTH])
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        depth = int(tags.get(_TIFF_BITS, (16,))[0])
        is_inverted = tags.get(_TIFF_PHOTOMETRIC) == 0
    key = _png_key(image)
    values = np.asarray(image).astype(np.int32)  # 1 bit comes as booleans, 2 and 4 as 0 to 255
    most = (1 << depth) - 1 if depth > 8 else 1 if image.mode == "1" else 255
    shown = values >> (depth - 8) if depth > 8 else values * (255 // most)
    shown = 255 - shown if is_inverted else shown
    grey = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    if key is not None:
        transparent = key if depth > 8 else key * most // ((1 << depth) - 1)
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(alpha))
    return grey


def _png_key(image: Image.Image) -> int | None:
    """The grey that is transparent in a PNG, as the file has it."""
    key = image.info.get("transparency") if image.format == "PNG" else None
    return key if isinstance(key, int) else None


def _has_deep_colour_key(image: Image.Image) -> bool:
    key = image.info.get("transparency")
    return image.mode == "RGB" and isinstance(key, tuple) and image.info.get(_DEPTH) == 16


def _pixels_alone(data: bytes) -> bytes:
    """A PNG without the texts and colour profiles in it, which Pillow bounds in size."""
    if not data.startswith(_PNG):
        return data
    kept, position = [_PNG], len(_PNG)
    while position + 8 <= len(data) and len(kept) <= _MOST_CHUNKS:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in _PIXEL_CHUNKS:
            kept.append(data[position:end])
        position = end
        if kind == b"IEND":
            break
    return b"".join(kept)


def _scans(data: bytes) -> int:
    """How often a JPEG starts a scan; markers within its metadata do not count."""
    count, position = 0, 2
    while (match := _MARKER.search(data, position)) is not None:
        marker = data[match.start() + 1]
        if marker == _END_OF_IMAGE or match.end() + 2 > len(data):
            break
        count += marker == _START_OF_SCAN
        position = match.end() + struct.unpack_from(">H", data, match.end())[0]
    return count

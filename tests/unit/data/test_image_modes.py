"""Every mode that Pillow opens shows what a viewer shows, or is refused by name."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vila_mc.data.image_codec import MAX_SCANS, decode_image, open_image
from vila_mc.data.images import check_image
from vila_mc.errors import DataError

RAMP = np.arange(64).reshape(8, 8)
WHITE = 255
_COLOUR_TYPE = {"grey": 0, "colour": 2}


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(open_image(data, "pic"), "pic"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, depth: int, key: tuple[int, ...] | None, *extra: bytes) -> bytes:
    """A PNG of [y, x] grey or [y, x, 3] colour samples, as they are."""
    kind = _COLOUR_TYPE["grey" if samples.ndim == 2 else "colour"]
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        packed = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:] for row in rows]
        packed = [np.packbits(one.ravel()).tobytes() for one in bits]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, kind, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, transparent)) + b"".join(
        (chunk(b"IDAT", data), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_png(depth: int, has_key: bool) -> None:
    most = (1 << depth) - 1
    samples = RAMP * 1040 if depth == 16 else RAMP % (most + 1)
    key = int(samples[0, 1])
    expected = samples >> 8 if depth == 16 else samples * 255 // most
    expected = np.where((samples == key) & has_key, WHITE, expected)
    found = shown(png(samples, depth, (key,) if has_key else None))
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("has_key", [False, True])
def test_colour_png(has_key: bool) -> None:
    samples = np.stack([RAMP, RAMP + 100, RAMP * 2], axis=2)
    key = tuple(int(value) for value in samples[0, 1])
    expected = np.where((samples == key).all(2, keepdims=True) & has_key, WHITE, samples)
    assert np.array_equal(shown(png(samples, 8, key if has_key else None)), expected)
    if has_key:
        with pytest.raises(DataError, match="16 bits of colour and one colour that is transparent"):
            shown(png(samples * 257, 16, tuple(value * 257 for value in key)))
    else:
        assert np.array_equal(shown(png(samples * 257, 16, None)), samples)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(samples: np.ndarray, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of one strip."""
    data = samples.tobytes()
    entries = [
        (256, 3, samples.shape[1]),
        (257, 3, samples.shape[0]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, samples.shape[0]),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    at = 8 + len(data)
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return (
        b"II*\0" + struct.pack("<I", at) + data + struct.pack("<H", len(entries)) + table + bytes(4)
    )


DEEP = (RAMP * 1040).astype("<u2")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(DEEP, 16, 1), DEEP >> 8),
        (tiff(DEEP, 16, 0), 255 - (DEEP >> 8)),
        (tiff(RAMP.astype(np.uint8), 8, 1), RAMP),
        (tiff(RAMP.astype(np.uint8), 8, 0), 255 - RAMP),
        (encoded(Image.fromarray(DEEP), "PNG"), DEEP >> 8),
        (encoded(Image.fromarray(RAMP.astype(np.uint8)), "BMP"), RAMP),
        (encoded(Image.fromarray(RAMP > 31), "TIFF"), np.where(RAMP > 31, 255, 0)),
    ],
)
def test_other_grey(data: bytes, expected: np.ndarray) -> None:
    assert np.array_equal(shown(data)[..., 0], expected)


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *(("PNG", mode) for mode in ("LA", "RGBA")),
        *(("TIFF", mode) for mode in ("LA", "RGBA", "PA")),
        *(("WEBP", mode) for mode in ("LA", "RGBA")),
        ("GIF", "RGBA"),
    ],
)
def test_transparency_shows_white(format: str, mode: str) -> None:
    colour = np.zeros((8, 8, 4), np.uint8)
    colour[..., 3] = np.where(RAMP < 32, 0, 255)
    image = Image.fromarray(colour, "RGBA").convert(mode)
    data = encoded(image, format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(shown(data)[..., 0], np.where(RAMP < 32, 255, 0))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff(RAMP.astype("<f4"), 32, 1, 3), "floating-point grey"),
        (tiff(RAMP.astype("<i4"), 32, 1, 2), "32 bits or signed numbers of grey"),
        (tiff(RAMP.astype("<i2"), 16, 1, 2), "32 bits or signed numbers of grey"),
        (encoded(Image.new("LAB", (8, 8)), "TIFF"), "Lab colours"),
    ],
)
def test_what_viewers_do_not_agree_about(data: bytes, kind: str) -> None:
    with pytest.raises(DataError, match=f"pic holds {kind}, which have no agreed brightness"):
        check_image(data, "pic")


def test_metadata_of_a_png_may_be_large() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (2 << 20), zip=True)
    text.add_itxt("other", "y" * (2 << 20), zip=True)
    picture = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB")
    for options in ({"pnginfo": text}, {"icc_profile": b"\0" * (2 << 20)}, {"exif": b"x" * 70_000}):
        assert np.array_equal(shown(encoded(picture, "PNG", **options)), np.asarray(picture))
    damaged = chunk(b"tEXt", b"a\0b")[:-1] + b"?"  # a viewer does not look at it either
    assert np.array_equal(shown(png(RAMP, 8, None, damaged))[..., 0], RAMP)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert np.unique(shown(data).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_scans_are_counted_in_the_picture_alone() -> None:
    picture = encoded(Image.fromarray(RAMP.astype(np.uint8)), "JPEG", progressive=True)
    assert 1 < picture.count(b"\xff\xda") < MAX_SCANS
    comment = b"\xff\xda" * (MAX_SCANS + 1)
    marked = picture[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + picture[2:]
    assert np.array_equal(shown(marked), shown(picture))

"""Images as VILA saw them in training: Pillow on 8 bits, then fp32 arithmetic.

The arithmetic is written out rather than borrowed, because other resizers (tensor based,
anti-aliased) give other pixels.
"""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ImagesKwargs

IMAGE_MODES = ("crop", "pad", "resize", "tiles")
UNSHOWN_MODES = ("I", "F", "LAB", "HSV")
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262


class VilaImageProcessor(ImageProcessingMixin):
    """Square, normalised pixel values.

    Args:
        image_mode: how an image becomes square: crop (short side to size, centre crop), pad (square
            canvas of the mean colour, image centred, then resized) or resize (directly); tiles cuts
            it into several squares.
        max_tiles: with tiles, the most of them, not counting the thumbnail.
        thumbnail: with tiles, whether the whole image is one more square behind several.
        tile_newline: with tiles, token id behind each of them; none if None.
        crop_size: ``{"height": side, "width": side}`` of the result.
        image_mean: per channel, on a scale of 0 to 1.
        image_std: per channel, on a scale of 0 to 1.
        kwargs: further keys of a CLIP preprocessor file; kept, not used.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    valid_kwargs = ImagesKwargs  # transformers' pipelines look it up

    def __init__(
        self,
        image_mode: str = "crop",
        crop_size: dict[str, int] | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        max_tiles: int = 12,
        thumbnail: bool = True,
        tile_newline: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_mode not in IMAGE_MODES:
            raise ValueError(
                f"image_mode is {image_mode!r}; it must be one of {', '.join(IMAGE_MODES)}."
            )
        self.image_mode = image_mode
        self.max_tiles, self.thumbnail, self.tile_newline = max_tiles, thumbnail, tile_newline
        self.crop_size = crop_size or {"height": 336, "width": 336}
        self.image_mean = image_mean or [0.48145466, 0.4578275, 0.40821073]
        self.image_std = image_std or [0.26862954, 0.26130258, 0.27577711]

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Pixel values of one image or a list of them.

        Args:
            images: PIL images, arrays [y, x, 3] of uint8, paths or URLs.
            return_tensors: "pt" or "np".

        Returns:
            ``pixel_values`` [n, 3, y, x] fp32; n counts tiles, where images are cut.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = self.normalise(torch.cat([self.make_squares(image) for image in images]))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def make_squares(self, image: Any) -> Tensor:
        """An image -> uint8 [n, 3, y, x], n = 1 unless it is cut: tiles row by row, a thumbnail."""
        image = self._open(image)
        if self.image_mode != "tiles":
            return self.make_square(image)[None]
        size = self.crop_size["height"]
        tiles = cut(to_rgb(image), size, self.max_tiles, self.thumbnail)
        return torch.stack([channels_first(tile) for tile in tiles])

    def make_square(self, image: Image.Image) -> Tensor:
        """An image of any mode and shape, where it is not cut -> uint8 [3, y, x]."""
        size = self.crop_size["height"]
        image = to_rgb(image)
        if self.image_mode == "crop":
            image = crop_centre(image, size)
        else:
            if self.image_mode == "pad":
                mean = tuple(int(255 * value) for value in self.image_mean)
                image = pad_to_square(image, mean)
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return channels_first(image)

    def normalise(self, pixels_n3yx: Tensor) -> Tensor:
        """uint8 [n, 3, y, x] -> fp32, each channel shifted and scaled."""
        mean = torch.tensor(self.image_mean).view(3, 1, 1)
        std = torch.tensor(self.image_std).view(3, 1, 1)
        return (pixels_n3yx.float() / 255.0 - mean) / std

    def _open(self, image: Any) -> Image.Image:
        if isinstance(image, str):
            image = self.fetch_images(image)
        if isinstance(image, Tensor):
            image = image.cpu().numpy()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"an image array is {image.dtype} {list(image.shape)}; give uint8 [y, x, 3] "
                    "or a PIL image."
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ValueError(f"an image is a {type(image).__name__}; give a PIL image.")
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Three 8-bit channels, as a viewer shows them. Transparency shows white."""
    if image.mode in UNSHOWN_MODES:
        raise ValueError(
            f"an image of mode {image.mode} has no agreed brightness; convert it to 8 or 16 bits "
            "of grey or colour."
        )
    if image.mode.startswith("I;16"):
        image = deep_grey(image)
    elif image.mode in ("La", "RGBa"):  # multiplied with their transparency
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image)
    return image.convert("RGB")


def deep_grey(image: Image.Image) -> Image.Image:
    """The upper 8 bits of grey of more, with what is transparent in a PNG; Pillow would clip."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    values = np.asarray(image).astype(np.int32)
    upper = (values >> (int(tags.get(TIFF_BITS, (16,))[0]) - 8)).clip(0, 255)
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is 0
        upper = 255 - upper
    grey = Image.fromarray(upper.astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def channels_first(image: Image.Image) -> Tensor:
    """uint8 [3, y, x]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def cut(image: Image.Image, size: int, most: int, has_thumbnail: bool) -> list[Image.Image]:
    """The image stretched to the best grid of squares and cut, row by row, then a thumbnail."""
    columns, rows = best_grid(*image.size, size, most)
    stretched = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    places = [(x * size, y * size) for y in range(rows) for x in range(columns)]
    tiles = [stretched.crop((x, y, x + size, y + size)) for x, y in places]
    if has_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
    return tiles


def best_grid(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """Columns and rows of the grid of at most ``most`` squares whose shape is closest (InternVL).

    Of two that are as close the larger, if the image has more than half as many pixels.
    """
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)]
    best, distance = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        apart = abs(width / height - columns / rows)
        is_large = width * height > 0.5 * size * size * columns * rows
        if apart < distance or (apart == distance and is_large):
            best, distance = (columns, rows), apart
    return best


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """Short side to ``size`` (bicubic, long side rounded down), then the central square."""
    width, height = image.size
    long_side = int(size * max(width, height) / min(width, height))
    width, height = (size, long_side) if width <= height else (long_side, size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centre the image on the smallest square canvas that holds it."""
    width, height = image.size
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas

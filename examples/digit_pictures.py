"""scikit-learn's handwritten digits as PNG files, and turned and shifted copies of them."""

import io
import random
from dataclasses import dataclass
from typing import Any

from vila_mc.errors import SetupError

SEED = 1797
NUM_DIGITS = 1797
IMAGE_SIDE = 28
GREY_LEVELS = 16  # the brightest value in scikit-learn's set
MAX_TURN = 15.0  # degrees
MAX_SHIFT = 2.5  # pixels of the 28x28 picture


@dataclass(frozen=True, slots=True)
class Digit:
    """One picture of a handwritten digit."""

    name: str
    """File name within images/."""
    value: int
    """The digit it shows."""


def load_digits(
    num_training: int, num_held_out: int, num_variants: int
) -> tuple[list[Digit], list[Digit], dict[str, bytes]]:
    """scikit-learn's digits in its order, those of training with their variants.

    Args:
        num_training: digits to train on, from the first on.
        num_held_out: digits that are held out, to the last.
        num_variants: turned and shifted copies of each training picture.

    Returns:
        Training digits, held-out digits, and the PNG bytes of every picture by its name.

    Raises:
        SetupError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise SetupError(
            "scikit-learn is not installed; the digits come with it. Run "
            "pip install 'vila_mc[examples]'."
        ) from None
    loaded = datasets.load_digits()
    rng = random.Random(f"{SEED} variants")
    training: list[Digit] = []
    held_out: list[Digit] = []
    pictures: dict[str, bytes] = {}
    for number, (grey, value) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        if num_training <= number < NUM_DIGITS - num_held_out:
            continue
        upright = picture(grey)
        shown = [upright]
        if number < num_training:
            shown += [varied(upright, rng) for _ in range(num_variants)]
        for variant, image in enumerate(shown):
            suffix = f"-{variant}" if variant else ""
            digit = Digit(f"digit-{number:04d}{suffix}.png", int(value))
            (training if number < num_training else held_out).append(digit)
            pictures[digit.name] = png(image)
    return training, held_out, pictures


def picture(grey: Any) -> Any:
    """An [8, 8] array of 0 ... 16 as a Pillow image of ``IMAGE_SIDE`` pixels."""
    from PIL import Image

    image = Image.fromarray((grey * 255 / GREY_LEVELS).round().astype("uint8"))
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)


def varied(image: Any, rng: random.Random) -> Any:
    """The picture turned and shifted a little."""
    from PIL import Image

    shift = (rng.uniform(-MAX_SHIFT, MAX_SHIFT), rng.uniform(-MAX_SHIFT, MAX_SHIFT))
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    return image.rotate(turn, Image.Resampling.BICUBIC, translate=shift)


def png(image: Any) -> bytes:
    """A Pillow image as a PNG file."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()

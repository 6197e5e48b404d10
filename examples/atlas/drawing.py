"""How the pictures are drawn: square images, the same bytes from the same arguments."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from atlas.countries import Ring

Rasterize = Callable[[str, int], bytes]
"""From an SVG file's text and a width in pixels to PNG."""

SEA, LAND, MARKED, INK, PAPER = "#dfe9f2", "#b9b9a8", "#c82014", "#101010", "#ffffff"
OUTLINE = "#1f5f43"
WORLD = (-180.0, 180.0, -58.0, 84.0)
"""Least and greatest longitude and latitude of the world map."""
LETTERS = "ACHLSTXZ"
"""What is written on maps. Chosen to differ in more than one stroke."""
LABEL = 1 / 4
"""Side of a label, as a share of the map's."""
COLOURS = {
    "red": (206, 17, 38),
    "orange": (255, 136, 0),
    "yellow": (255, 209, 0),
    "green": (0, 122, 61),
    "light blue": (116, 172, 223),
    "blue": (0, 40, 140),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
"""Names of colours, and what is taken for them: the nearest."""


def draw_flag(png: bytes, size: int) -> Image.Image:
    """A flag stretched to a square, transparent parts white."""
    flag = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", flag.size, PAPER)
    page.alpha_composite(flag)
    return page.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def draw_outline(rings: Sequence[Ring], size: int) -> Image.Image:
    """The filled shape of a country, as large as the square allows."""
    xs = [x for ring in rings for x, _ in ring]
    if max(xs) - min(xs) > 180:  # on both sides of the date line: moved to one
        rings = [[(x + 360 if x < 0 else x, y) for x, y in ring] for ring in rings]
        xs = [x for ring in rings for x, _ in ring]
    ys = [y for ring in rings for _, y in ring]
    scale = max(max(xs) - min(xs), max(ys) - min(ys)) * 1.1
    middle = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    picture = Image.new("RGB", (2 * size, 2 * size), PAPER)
    pen = ImageDraw.Draw(picture)
    for ring in rings:
        corners = [
            (
                2 * size * (0.5 + (x - middle[0]) / scale),
                2 * size * (0.5 - (y - middle[1]) / scale),
            )
            for x, y in ring
        ]
        if len(corners) > 2:
            pen.polygon(corners, fill=OUTLINE, outline=OUTLINE)
    return picture.resize((size, size), Image.Resampling.BOX)


def draw_world(outlines: Sequence[Sequence[Ring]], size: int) -> Image.Image:
    """A map of the world, stretched to a square."""
    picture = Image.new("RGB", (2 * size, 2 * size), SEA)
    pen = ImageDraw.Draw(picture)
    for rings in outlines:
        for ring in rings:
            corners = [on_world(point, 2 * size) for point in ring]
            if len(corners) > 2:
                pen.polygon(corners, fill=LAND, outline=LAND)
    return picture.resize((size, size), Image.Resampling.BOX)


def draw_locator(world: Image.Image, rings: Sequence[Ring]) -> Image.Image:
    """The world with one country marked: filled, and a disk on its largest area."""
    size = world.width
    picture = world.copy()
    pen = ImageDraw.Draw(picture)
    for ring in rings:
        corners = [on_world(point, size) for point in ring]
        if len(corners) > 2:
            pen.polygon(corners, fill=MARKED, outline=MARKED)
    x, y = on_world(centre(rings), size)
    radius = size / 24
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=MARKED)
    return picture


def centre(rings: Sequence[Ring]) -> tuple[float, float]:
    """The mean corner of the area with the largest extent."""
    largest = max(rings, key=_extent)
    return (
        sum(x for x, _ in largest) / len(largest),
        sum(y for _, y in largest) / len(largest),
    )


def on_world(point: tuple[float, float], size: int) -> tuple[float, float]:
    """Where a point of the earth stands in the square map, in pixels."""
    west, east, south, north = WORLD
    x, y = point
    return size * (x - west) / (east - west), size * (north - y) / (north - south)


def label_place(rng: random.Random, mark: tuple[float, float] | None = None) -> tuple[float, float]:
    """A place for ``write_letter``: near a corner where the mark is not hidden. Anywhere on the map
    was too hard to learn in minutes.

    Args:
        rng: draws it.
        mark: the middle of the mark, from (0, 0) to (1, 1); None for a picture without.
    """
    while True:
        corner = (rng.randrange(2), rng.randrange(2))
        at = tuple(abs(one - rng.uniform(0, 0.05)) for one in corner)
        middle = tuple(LABEL / 2 + place * (1 - LABEL) for place in at)
        if mark is None or max(abs(a - b) for a, b in zip(middle, mark, strict=True)) > LABEL:
            return at[0], at[1]


def draw_region_map(path: Path, size: int) -> Image.Image:
    """A map of divisions, stretched to a square."""
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def write_letter(picture: Image.Image, letter: str, at: tuple[float, float]) -> Image.Image:
    """A letter on a white label, of 0.7 of the label's side. On a map that is a sixth of the
    picture's side: 8 pixels of 48, and 4 of 24, which are too few.

    Args:
        picture: on which; it stays as it is.
        letter: one of ``LETTERS``.
        at: where the label stands, from (0, 0) at the upper left to (1, 1).
    """
    size = picture.width
    side = size * LABEL
    left, top = at[0] * (size - side), at[1] * (size - side)
    labelled = picture.copy()
    pen = ImageDraw.Draw(labelled)
    pen.rectangle((left, top, left + side, top + side), fill=PAPER)
    font = ImageFont.load_default(side)
    pen.text((left + side / 2, top + side / 2), letter, fill=INK, font=font, anchor="mm")
    return labelled


def draw_card(rng: random.Random, letter: str, size: int) -> Image.Image:
    """A letter as on maps, but on one colour: to learn letters."""
    card = Image.new("RGB", (size, size), rng.choice([SEA, LAND, OUTLINE, MARKED]))
    return write_letter(card, letter, label_place(rng))


def vary(picture: Image.Image, scale: float, at: tuple[float, float]) -> Image.Image:
    """The picture smaller on white, at a place of one's choice; for more pictures of one thing."""
    size = picture.width
    small = max(1, round(size * scale))
    page = Image.new("RGB", (size, size), PAPER)
    room = size - small
    shrunk = picture.resize((small, small), Image.Resampling.LANCZOS)
    page.paste(shrunk, (round(at[0] * room), round(at[1] * room)))
    return page


def colour_shares(picture: Image.Image) -> dict[str, float]:
    """Which share of a picture has each colour of ``COLOURS``, the largest first."""
    small = picture.resize((48, 48), Image.Resampling.BOX).convert("RGB")
    data = small.tobytes()
    counts = dict.fromkeys(COLOURS, 0)
    for at in range(0, len(data), 3):
        counts[_nearest(data[at], data[at + 1], data[at + 2])] += 1
    total = len(data) // 3
    shares = {name: count / total for name, count in counts.items() if count}
    return dict(sorted(shares.items(), key=lambda one: (-one[1], one[0])))


def corner(picture: Image.Image) -> Image.Image:
    """The upper left of a picture, without its edge."""
    size = picture.width
    return picture.crop((size // 24, size // 24, size // 6, size // 6))


def to_png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _nearest(red: int, green: int, blue: int) -> str:
    def distance(name: str) -> int:
        r, g, b = COLOURS[name]
        return (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2

    return min(COLOURS, key=distance)


def _extent(ring: Ring) -> float:
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    return (max(xs) - min(xs)) * (max(ys) - min(ys))

"""The pictures: what is on each, and its file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from PIL import Image

from atlas import drawing
from atlas.countries import Country, Ring, flag_svg, outline
from atlas.drawing import LETTERS, Rasterize
from atlas.region_maps import Division, RegionMap
from atlas.world import Size, World

Kind = Literal["flag", "division_flag", "outline", "locator", "map"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and what can be said of it."""

    name: str
    """Of its file."""
    kind: Kind
    country: str
    subject: str
    """What it shows: the country, or one of its divisions."""
    is_test: bool
    """Of a country that is held out, or one of the last of several of one thing: never seen in
    training."""
    letter: str = ""
    """Written on it, if it is a map."""
    colours: tuple[str, ...] = ()
    """Of a flag, those that fill at least 1/16 of it, the largest first."""
    absent: tuple[str, ...] = ()
    """Of a flag, those that it certainly has not."""
    corner: str = ""
    """Of a flag, the colour of the upper left; "" where that is not of one colour."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws the pictures of a world.

    Args:
        world: whose.
        size: how many, and how large.
        countries: folder of the package of countries.
        rasterize: draws SVG.
    """

    world: World
    size: Size
    countries: Path
    rasterize: Rasterize

    def all(self) -> Iterator[tuple[Picture, Image.Image]]:
        """Every picture with its image, in an order that never changes."""
        outlines = {
            name: outline(self.countries, country) for name, country in self.world.countries.items()
        }
        globe = drawing.draw_world(list(outlines.values()), self.size.pixels)
        for name, country in self.world.countries.items():
            yield from self._flags(country)
            drawn = drawing.draw_outline(outlines[name], self.size.pixels)
            for number, picture in enumerate(self._varied(drawn, f"outline {name}")):
                yield self._plain("outline", country, number), picture
            yield from self._locators(globe, country, outlines[name])
        for region_map in self.world.maps:
            yield from self._region_map(region_map)

    def cards(self) -> Iterator[tuple[str, str, Image.Image]]:
        """Name, letter and image of pictures of a letter alone."""
        rng = self.world.stream("cards")
        for number in range(self.size.cards):
            letter = rng.choice(LETTERS)
            image = drawing.draw_card(rng, letter, self.size.pixels)
            yield f"card-{number}.png", letter, image

    def _flags(self, country: Country) -> Iterator[tuple[Picture, Image.Image]]:
        png = self.rasterize(flag_svg(self.countries, country), self.size.pixels)
        flag = drawing.draw_flag(png, self.size.pixels)
        for number, picture in enumerate(self._varied(flag, f"flag {country.name}")):
            yield self._plain("flag", country, number, flag), picture

    def _plain(
        self, kind: Kind, country: Country, number: int, flag: Image.Image | None = None
    ) -> Picture:
        return Picture(
            name=f"{kind}-{country.code}-{number}.png",
            kind=kind,
            country=country.name,
            subject=country.name,
            is_test=self._is_test(country.name, number, self.size.flags),
            **(colours_of(flag) if flag else FlagColours()),
        )

    def _locators(
        self, globe: Image.Image, country: Country, rings: Sequence[Ring]
    ) -> Iterator[tuple[Picture, Image.Image]]:
        marked = drawing.draw_locator(globe, rings)
        x, y = drawing.on_world(drawing.centre(rings), 1)
        count = self.size.locators
        yield from self._lettered("locator", country.code, country.name, marked, count, (x, y))

    def _region_map(self, region_map: RegionMap) -> Iterator[tuple[Picture, Image.Image]]:
        stem = region_map.picture.stem.replace("_", "-")
        drawn = drawing.draw_region_map(region_map.picture, self.size.pixels)
        yield from self._lettered("map", stem, region_map.country, drawn, self.size.maps)
        for number, division in enumerate(region_map.divisions):
            yield self._division(region_map, division, f"division-flag-{stem}-{number}.png")

    def _division(
        self, region_map: RegionMap, division: Division, name: str
    ) -> tuple[Picture, Image.Image]:
        flag = drawing.draw_flag(division.flag.read_bytes(), self.size.pixels)
        picture = Picture(
            name=name,
            kind="division_flag",
            country=region_map.country,
            subject=division.name,
            is_test=region_map.country in self.world.held_out,
            **colours_of(flag),
        )
        return picture, flag

    def _varied(self, picture: Image.Image, what: str) -> Iterator[Image.Image]:
        """The picture itself, then smaller ones."""
        yield picture
        places = self.world.stream(what)
        for _ in range(self.size.flags - 1):
            at = (places.random(), places.random())
            yield drawing.vary(picture, places.uniform(0.75, 0.95), at)

    def _lettered(
        self,
        kind: Kind,
        stem: str,
        country: str,
        picture: Image.Image,
        count: int,
        mark: tuple[float, float] | None = None,
    ) -> Iterator[tuple[Picture, Image.Image]]:
        """The map ``count`` times with a letter."""
        places = self.world.stream(f"{kind} {stem}")
        for number in range(count):
            letter = places.choice(LETTERS)
            at = drawing.label_place(places, mark)
            is_test = self._is_test(country, number, count)
            shown = Picture(
                name=f"{kind}-{stem}-{number}.png",
                kind=kind,
                country=country,
                subject=country,
                is_test=is_test,
                letter=letter,
            )
            yield shown, drawing.write_letter(picture, letter, at)

    def _is_test(self, country: str, number: int, count: int) -> bool:
        """Of several pictures of one thing the last quarter is for questions alone."""
        return country in self.world.held_out or number >= count - max(1, count // 4)


class FlagColours(TypedDict, total=False):
    """The fields of a picture that only a flag has."""

    colours: tuple[str, ...]
    absent: tuple[str, ...]
    corner: str


def colours_of(flag: Image.Image) -> FlagColours:
    """What a picture of a flag says of its colours."""
    shares = drawing.colour_shares(flag)
    upper_left = drawing.colour_shares(drawing.corner(flag))
    name, share = next(iter(upper_left.items()))
    return {
        "colours": tuple(colour for colour, share in shares.items() if share >= 1 / 16),
        "absent": tuple(colour for colour in drawing.COLOURS if shares.get(colour, 0.0) < 1 / 256),
        "corner": name if share >= 0.9 else "",
    }


def write_pictures(draw: Draw, folder: Path) -> list[Picture]:
    """Write every picture below ``folder``. Raises DataError and OSError."""
    folder.mkdir(parents=True)
    pictures = []
    for picture, image in draw.all():
        (folder / picture.name).write_bytes(drawing.to_png(image))
        pictures.append(picture)
    return pictures


def write_cards(draw: Draw, folder: Path) -> dict[str, str]:
    """Write pictures of letters; returns the letter of each. Raises OSError."""
    letters = {}
    for name, letter, image in draw.cards():
        (folder / name).write_bytes(drawing.to_png(image))
        letters[name] = letter
    return letters


def by_country(pictures: list[Picture]) -> Mapping[str, list[Picture]]:
    """The pictures of each country."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.country, []).append(picture)
    return groups

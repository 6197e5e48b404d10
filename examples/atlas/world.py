"""What the world is made of, and who is left out of what; everything follows from the seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.countries import Country, read_countries
from atlas.nouns import CONCRETE, Noun, read_nouns
from atlas.packages import COUNTRIES, GLOSSES, MAPS
from atlas.region_maps import RegionMap, read_region_maps
from vila_mc.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is made."""

    pixels: int = 336
    """Side of every picture."""
    held_out: int = 50
    """Countries whose pictures are never shown in training."""
    flags: int = 8
    """Pictures of a country's flag, each at another place and scale; as many of its outline."""
    locators: int = 16
    """World maps with one country marked, each with another letter."""
    maps: int = 12
    """Pictures of a map of regions, each with another letter."""
    cards: int = 6000
    """Pictures of a letter alone, from which the vision tower learns letters."""
    texts: int = 48
    """Texts about a country, each with other facts in other words."""
    documents: int = 24
    """Interleaved documents about a country."""
    lists: int = 4000
    """Interleaved documents that show one thing of several countries."""
    nouns: int = 1500
    """Nouns whose kind is told in several ways; half of them are asked about."""
    glosses: int = 60000
    """Nouns whose definition is told."""
    vocabulary: int = 8000
    """Tokens."""


SMALL = Size(
    pixels=96,
    flags=4,
    locators=8,
    maps=5,
    cards=1500,
    texts=16,
    documents=16,
    lists=3000,
    nouns=300,
    glosses=1500,
    vocabulary=2500,
)
"""For two CPU cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that is known, and the parts that training does not see."""

    seed: int
    countries: Mapping[str, Country]
    """By name, in alphabetical order."""
    held_out: frozenset[str]
    """Countries without a picture in training. What is written about them is in the text."""
    asked_in_text: frozenset[str]
    """Countries of which no text has a fact in the words that the questions use."""
    unasked: frozenset[str]
    """Countries whose flag and outline training shows with their names, but never asks about."""
    maps: tuple[RegionMap, ...]
    unused_maps: tuple[str, ...]
    """Titles of maps that are of no single country that is known."""
    nouns: tuple[Noun, ...]
    """Those with a kind that is told in several ways."""
    asked_nouns: frozenset[str]
    """Nouns whose kind no text tells in the words that the questions use."""
    glosses: tuple[Noun, ...]
    """Those whose definition is told."""

    @property
    def shown(self) -> list[Country]:
        """Countries whose pictures training sees."""
        return [one for one in self.countries.values() if one.name not in self.held_out]

    def stream(self, name: str) -> random.Random:
        """A random stream of its own for each thing that is made."""
        return random.Random(f"{self.seed} {name}")


def read_world(packages: Mapping[str, Path], size: Size, seed: int) -> World:
    """Read the packages and choose what is left out.

    Args:
        packages: the folder of each package, by name.
        size: how much is made.
        seed: of every choice.

    Raises:
        DataError: a package is not what it should be, or has too few countries.
    """
    countries = {one.name: one for one in read_countries(packages[COUNTRIES.name])}
    if len(countries) < 2 * size.held_out + 4:
        raise DataError(
            f"{packages[COUNTRIES.name]} holds {len(countries)} countries, too few to hold out "
            f"{size.held_out}."
        )
    maps, unused = read_region_maps(packages[MAPS.name], countries)
    nouns = read_nouns(packages[GLOSSES.name])
    told = [noun for noun in nouns if noun.kind and noun.file in CONCRETE][: size.nouns]

    def choose(what: str, names: Sequence[str], count: int) -> frozenset[str]:
        return frozenset(random.Random(f"{seed} {what}").sample(sorted(names), count))

    held_out = choose("held out", list(countries), size.held_out)
    shown = [name for name in countries if name not in held_out]
    return World(
        seed=seed,
        countries=countries,
        held_out=held_out,
        asked_in_text=choose("asked in text", list(countries), len(countries) // 2),
        unasked=choose("unasked", shown, len(shown) // 5),
        maps=tuple(maps),
        unused_maps=tuple(unused),
        nouns=tuple(told),
        asked_nouns=choose("asked nouns", [noun.word for noun in told], len(told) // 2),
        glosses=tuple(nouns[: size.glosses]),
    )

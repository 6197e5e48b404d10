"""Maps of countries and flags of their divisions, from the Debian package kgeography-data."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vila_mc.errors import DataError

FOLDER = "usr/share/kgeography"
OTHER_NAMES = {
    "Bosnia-Herzegovina": "Bosnia and Herzegovina",
    "Democratic Republic of the Congo": "DR Congo",
    "Great-Britain": "United Kingdom",
    "New-Zealand": "New Zealand",
    "Republic Of Ireland": "Ireland",
    "Republic of Korea": "South Korea",
    "Sri-Lanka": "Sri Lanka",
    "The Netherlands": "Netherlands",
    "USA": "United States",
}
"""Titles of maps, and what world-countries calls the country."""


@dataclass(frozen=True, slots=True)
class Division:
    """A state, province or district that has a flag of its own."""

    name: str
    flag: Path


@dataclass(frozen=True, slots=True)
class RegionMap:
    """A map of one country, each division in a colour of its own."""

    country: str
    title: str
    picture: Path
    divisions: tuple[Division, ...]
    """Those with a flag."""


def read_region_maps(
    package: Path, countries: Collection[str]
) -> tuple[list[RegionMap], list[str]]:
    """Maps whose title names one of the countries, and the titles of all others.

    Maps of continents, of the world and of parts of countries are among the others: they would show
    countries that are held out.

    Args:
        package: the unpacked package.
        countries: names.

    Raises:
        DataError: a map cannot be read, or there is none.
    """
    maps, others = [], []
    for path in sorted((package / FOLDER).glob("*.kgm")):
        title, picture, divisions = _read(path)
        name = _country_of(title)
        if name in countries:
            maps.append(RegionMap(name, title, picture, divisions))
        else:
            others.append(title)
    if not maps:
        raise DataError(f"{package / FOLDER} holds no map of a country that is known.")
    return maps, others


def _country_of(title: str) -> str:
    words = r" *(\(.*\)|by (Counties|Provinces)|Provinces|Districts|Regions).*$"
    name = re.sub(words, "", title)
    return OTHER_NAMES.get(name, name)


def _read(path: Path) -> tuple[str, Path, tuple[Division, ...]]:
    try:
        root = ElementTree.fromstring(path.read_bytes())
        title, picture = root.findtext("name"), root.findtext("mapFile")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} is no map of KGeography: {error}.") from None
    if not title or not picture:
        raise DataError(f"{path} is no map of KGeography: it has no name or no mapFile.")
    divisions = [
        Division(name.strip(), path.parent / "flags" / flag.strip())
        for division in root.findall("division")
        if (name := division.findtext("name")) and (flag := division.findtext("flag"))
    ]
    known = tuple(division for division in divisions if division.flag.is_file())
    return title.strip(), path.parent / picture.strip(), known

"""Countries as the npm package world-countries tells them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.errors import DataError

Ring = list[tuple[float, float]]
"""Longitude and latitude of the corners of one area, in degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """What is known of one country."""

    code: str
    """Three letters of ISO 3166-1, small."""
    name: str
    capital: str
    continent: str
    """Africa, Americas, Asia, Europe or Oceania."""
    part: str
    """Of the continent, such as Western Europe."""
    currency: str
    languages: tuple[str, ...]
    people: str
    """What someone from there is called."""
    borders: tuple[str, ...]
    """Names of the neighbours, in alphabetical order."""
    area: int
    """In square kilometres."""
    is_landlocked: bool


def read_countries(package: Path) -> list[Country]:
    """All members of the United Nations that have a capital and a currency, sorted by name.

    Territories are left out, since many fly the flag of another country.

    Args:
        package: the unpacked package.

    Raises:
        DataError: the package is not as it was when this was written.
    """
    path = package / "countries.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        names = {record["cca3"]: record["name"]["common"] for record in records}
        members = [record for record in records if record["unMember"] and record["capital"]]
        countries = [_country(record, names) for record in members if record["currencies"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not what world-countries 5 holds: {error!r}.") from None
    return sorted(countries, key=lambda country: country.name)


def flag_svg(package: Path, country: Country) -> str:
    """The flag. Raises DataError."""
    return _read(package / "data" / f"{country.code}.svg")


def outline(package: Path, country: Country) -> list[Ring]:
    """Every area of the country, without lakes. Raises DataError."""
    path = package / "data" / f"{country.code}.geo.json"
    try:
        features = json.loads(_read(path))["features"]
        return [ring for feature in features for ring in _rings(feature["geometry"])]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is no GeoJSON of an outline: {error!r}.") from None


def _country(record: dict[str, Any], names: dict[str, str]) -> Country:
    currency = next(iter(record["currencies"].values()))["name"]
    return Country(
        code=record["cca3"].lower(),
        name=record["name"]["common"],
        capital=record["capital"][0],
        continent=record["region"],
        part=record["subregion"],
        currency=currency,
        languages=tuple(record["languages"].values()),
        people=record["demonyms"]["eng"]["m"],
        borders=tuple(sorted(names[code] for code in record["borders"])),
        area=round(record["area"]),
        is_landlocked=record["landlocked"],
    )


def _rings(geometry: dict[str, Any]) -> Iterator[Ring]:
    """The outer ring of every polygon."""
    polygons: Sequence[Any] = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    for polygon in polygons:
        yield [(float(x), float(y)) for x, y, *_ in polygon[0]]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None

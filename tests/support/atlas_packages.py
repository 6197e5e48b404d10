"""A world of a dozen countries in the formats of the packages that examples/atlas reads."""

import io
import json
from pathlib import Path
from typing import Any

from atlas.packages import COUNTRIES, GLOSSES, MAPS
from atlas.world import Size
from PIL import Image

TINY = Size(
    pixels=48,
    held_out=3,
    flags=2,
    locators=4,
    maps=4,
    cards=5,
    texts=3,
    documents=3,
    lists=20,
    nouns=8,
    glosses=8,
    vocabulary=300,
)
NAMES = (
    *("Avaria", "Belmont", "Cordova", "Dunland", "Elbonia", "Freedonia"),
    *("Grenovia", "Hyrkania", "Istria", "Jundland", "Kyrat", "Latveria"),
)
PAINTS = (("#ce1126", "#ffffff"), ("#007a3d", "#ffd100"), ("#00288c", "#ce1126"))
NOUNS = (
    *(("fox", "animal"), ("hare", "animal"), ("spade", "tool"), ("rake", "tool")),
    *(("pear", "fruit"), ("plum", "fruit"), ("oak", "tree"), ("elm", "tree")),
)


def write_packages(folder: Path) -> dict[str, Path]:
    """The unpacked packages, by name."""
    packages = {one.name: folder / one.name for one in (COUNTRIES, MAPS, GLOSSES)}
    _write_countries(packages[COUNTRIES.name])
    _write_maps(packages[MAPS.name] / "usr/share/kgeography")
    _write_wordnet(packages[GLOSSES.name] / "usr/share/wordnet")
    return packages


def rasterize(svg: str, width: int) -> bytes:
    """In place of resvg: the upper half in the first colour, the lower in the second."""
    upper, lower, *_ = (part[:7] for part in svg.split('fill="')[1:])
    picture = Image.new("RGB", (width, width // 2), lower)
    picture.paste(Image.new("RGB", (width, width // 4), upper), (0, 0))
    return _png(picture)


def _write_countries(package: Path) -> None:
    (package / "data").mkdir(parents=True)
    records = [_country(at, name) for at, name in enumerate(NAMES)]
    territory = {**_country(0, "Isle"), "cca3": "ZZZ", "unMember": False}
    (package / "countries.json").write_text(json.dumps([*records[::-1], territory]))
    for at, record in enumerate(records):
        code = record["cca3"].lower()
        upper, lower = PAINTS[at % len(PAINTS)]
        svg = f'<svg><rect fill="{upper}"/><rect fill="{lower}"/></svg>'
        (package / "data" / f"{code}.svg").write_text(svg)
        west, south = -150 + 25 * at, -40 + 9 * at
        ring = [[west, south], [west + 9, south], [west + 9, south + 8], [west, south]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        if at % 2:
            island = [[west, south - 5], [west + 1, south - 5], [west, south - 4]]
            shape = {"type": "MultiPolygon", "coordinates": [[ring], [island]]}
        geo = {"type": "FeatureCollection", "features": [{"geometry": shape}]}
        (package / "data" / f"{code}.geo.json").write_text(json.dumps(geo))


def _country(at: int, name: str) -> dict[str, Any]:
    borders = [_code(at + step) for step in (-1, 1) if 0 <= at + step < len(NAMES)]
    return {
        "name": {"common": name},
        "cca3": _code(at),
        "unMember": True,
        "capital": [f"{name} City"],
        "currencies": {"X": {"name": f"{name[:3]} pound"}},
        "region": "Europe" if at % 2 else "Asia",
        "subregion": "Western Europe" if at % 2 else "Central Asia",
        "languages": {"x": f"{name[:4]}ish"},
        "demonyms": {"eng": {"m": f"{name[:4]}er"}},
        "borders": borders,
        "area": 1000.5 + at,
        "landlocked": at % 3 == 0,
    }


def _code(at: int) -> str:
    return NAMES[at][:3].upper()


def _write_maps(folder: Path) -> None:
    (folder / "flags" / "dunland").mkdir(parents=True)
    flag = Image.new("RGB", (30, 20), "#ffd100")
    (folder / "flags" / "dunland" / "north.png").write_bytes(_png(flag))
    for title, stem in (
        *((f"{name} (Districts)", name.lower()) for name in NAMES[:6]),
        ("World", "world"),
    ):
        picture = Image.new("P", (40, 30), 3)
        (folder / f"{stem}.png").write_bytes(_png(picture))
        flags = "<flag>dunland/north.png</flag>" if stem == "dunland" else ""
        (folder / f"{stem}.kgm").write_text(
            f"<!DOCTYPE kgeographyMap><map><mapFile>{stem}.png</mapFile><name>{title}</name>"
            "<division><name>Border</name><ignore>yes</ignore></division>"
            f"<division><name>North</name>{flags}</division></map>"
        )


def _write_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    kinds = sorted({kind for _, kind in NOUNS})
    offsets = {word: f"{at:08}" for at, word in enumerate([*kinds, *(n for n, _ in NOUNS)], 10)}
    licence = "  1 This is no licence.  \n"
    data = [
        f'{offsets[kind]} 05 n 01 {kind} 0 000 | what a {kind} is; "one {kind}"' for kind in kinds
    ]
    data += [
        f"{offsets[noun]} 05 n 02 {noun} 0 big_{noun} 0 002 + {offsets[kind]} v 0101 "
        f"@ {offsets[kind]} n 0000 | a {kind} of its own"
        for noun, kind in NOUNS
    ]
    index = [f"{word} n 1 1 @ 1 1 {offset}" for word, offset in offsets.items()]
    counts = [f"{noun}%1:05:00:: 1 {90 - at}" for at, (noun, _) in enumerate(NOUNS)]
    for name, lines in (("data.noun", data), ("index.noun", index)):
        (folder / name).write_text(licence + "\n".join(lines) + "\n")
    (folder / "cntlist.rev").write_text("\n".join([*counts, "fox%2:35:00:: 1 7"]) + "\n")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()

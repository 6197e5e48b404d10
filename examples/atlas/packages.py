"""Fetches the packages that the world is made of, by the tools of their registries."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vila_mc.errors import SetupError


@dataclass(frozen=True, slots=True)
class Package:
    """One file of a registry, and what it is fetched and unpacked with."""

    name: str
    version: str
    registry: str
    """npm, Debian or PyPI."""
    file: str
    """What the fetched file is called, up to what differs between machines."""
    sha256: tuple[str, ...]
    """Of the pinned version, one for each kind of machine."""
    licence: str
    what: str


COUNTRIES = Package(
    "world-countries",
    "5.1.0",
    "npm",
    "world-countries-",
    ("329eb6ef4099ffb590219c9beb634bf489a5e4b10d8ab0ac52a58ebf7b9f8495",),
    "ODbL 1.0",
    "flags (SVG), outlines (GeoJSON) and facts about countries",
)
MAPS = Package(
    "kgeography-data",
    "4:22.12.3-1",
    "Debian",
    "kgeography-data_",
    ("1cdaf45dea7cbf1682a05109b4e9299934f0a60ca8866fa957cf4d9dcfe3982a",),
    "GPL-2+",
    "maps of countries with coloured divisions, and flags of divisions",
)
GLOSSES = Package(
    "wordnet-base",
    "1:3.0-37",
    "Debian",
    "wordnet-base_",
    ("61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",),
    "WordNet 3.0",
    "nouns, their glosses, what they are kinds of and how frequent they are",
)
RENDERER = Package(
    "resvg-py",
    "0.5.0",
    "PyPI",
    "resvg_py-",
    (
        "84f2378ecc7a8e38b03429efaefc816daec1b1970114909a6f973393b297c91b",  # x86-64
        "1e66216f78c84a27d34ce75f4535d8e26565771be4f1848ddc71e8a7ce78973a",  # 64-bit Arm
    ),
    "MPL-2.0 / Apache-2.0",
    "draws SVG files; nothing of it is in the world",
)
PACKAGES = (COUNTRIES, MAPS, GLOSSES, RENDERER)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A package on this machine."""

    package: Package
    folder: Path
    """Its unpacked content."""
    file: str
    sha256: str

    @property
    def is_pinned(self) -> bool:
        """Whether it is, byte for byte, what the figures of this example were measured with."""
        return self.sha256 in self.package.sha256


def fetch(folder: Path) -> dict[str, Fetched]:
    """Every package, unpacked below ``folder``; what lies there already is not fetched again.

    Args:
        folder: made if need be. Files that another machine fetched may be put there by hand.

    Returns:
        By name of the package.

    Raises:
        SetupError: a tool is missing, a registry cannot be reached, or a file is not what it should
            be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {package.name: _fetch(package, folder) for package in PACKAGES}


def _fetch(package: Package, folder: Path) -> Fetched:
    file = _find(package, folder)
    if file is None:
        _download(package, folder)
        file = _find(package, folder)
        if file is None:
            raise SetupError(
                f"{package.registry} gave no file {package.file}* of {package.name}. Put one into "
                f"{folder} by hand."
            )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest not in package.sha256 and package.registry != "Debian":
        raise SetupError(
            f"{file} is not {package.name} {package.version}: its SHA-256 is {digest}. Remove it; "
            "the same command fetches it anew."
        )
    unpacked = folder / package.name
    if not (unpacked / ".sha256").is_file() or (unpacked / ".sha256").read_text() != digest:
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        _run(_unpacking(package, file, unpacked), folder, package)
        (unpacked / ".sha256").write_text(digest)
    return Fetched(package, unpacked, file.name, digest)


def _find(package: Package, folder: Path) -> Path | None:
    files = sorted(file for file in folder.glob(f"{package.file}*") if file.is_file())
    return files[-1] if files else None


def _download(package: Package, folder: Path) -> None:
    match package.registry:
        case "npm":
            _run(("npm", "pack", "--silent", f"{package.name}@{package.version}"), folder, package)
        case "PyPI":
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
            wheel = ("--only-binary", ":all:", f"{package.name}=={package.version}")
            _run((*pip, *wheel), folder, package)
        case _:
            # The file's owner is root where we are: apt's own user cannot write here, and says so.
            apt = ("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root")
            try:
                _run((*apt, f"{package.name}={package.version}"), folder, package)
            except SetupError:  # another release of Debian or Ubuntu has another version
                _run((*apt, package.name), folder, package)


def _unpacking(package: Package, file: Path, unpacked: Path) -> Sequence[str]:
    match package.registry:
        case "npm":
            inner = ("--strip-components", "1", "-C", str(unpacked.absolute()))
            return ("tar", "-xzf", str(file.absolute()), *inner)
        case "PyPI":
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
            return (*pip, "--target", str(unpacked.absolute()), str(file.absolute()))
        case _:
            return ("dpkg-deb", "-x", str(file.absolute()), str(unpacked.absolute()))


def _run(command: Sequence[str], folder: Path, package: Package) -> None:
    by_hand = f"or put {package.file}* of {package.name} {package.version} into {folder} by hand"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SetupError(
            f"{package.name} comes from {package.registry}, and {command[0]} is not on this "
            f"machine. Install it, {by_hand}."
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        hint = "run apt-get update, " if package.registry == "Debian" else ""
        raise SetupError(
            f"{package.name} {package.version} of {package.registry} cannot be had: {command[0]} "
            f"says: {said}. See whether the registry can be reached, {hint}{by_hand}."
        )


def sources_page(fetched: Sequence[Fetched]) -> str:
    """SOURCES.md: where everything comes from, and under which licence."""
    rows = [
        "# Sources",
        "",
        "Pictures and texts of this folder are made from these packages. Whoever passes them on "
        "passes them on under these licences; the texts of the licences are in the "
        "packages.",
        "",
        "| package | version | from | licence | what | SHA-256 |",
        "|---|---|---|---|---|---|",
    ]
    for one in fetched:
        package = one.package
        version = package.version if one.is_pinned else f"{one.file}, **not {package.version}**"
        rows.append(
            f"| {package.name} | {version} | {package.registry} | {package.licence} | "
            f"{package.what} | {one.sha256} |"
        )
    return "\n".join(rows) + "\n"

"""YAML as people write it for runs: bounded in size, and every key once."""

from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from vila_mc.errors import ConfigError

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
"""Values of a recipe with every alias written out; aliases of aliases multiply."""
_NAMELESS = 'in "<unicode string>",'
"""What yaml calls a text without a file; the message names the file or option itself."""

PRESETS = ("tiny", "small", "base")
"""Recipes that come with the package, from the smallest model to the largest."""
_PRESET = "preset:"

_INTEGER, _LONGEST_INTEGER = "tag:yaml.org,2002:int", 1000
"""In hexadecimal Python reads numbers that it then refuses to print."""


def read_recipe(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or of ``preset:NAME``; empty for an empty file.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not a YAML mapping; there is no
            such preset.
    """
    try:
        with open(_preset(file) or file, "rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        meant = f"{_PRESET}{file}"
        hint = f"Did you mean {meant}?" if str(file) in PRESETS else "Check its path."
        raise ConfigError(f"there is no recipe {file}. {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}.") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{file} is larger than a recipe may be, {_MOST_BYTES:,} bytes.")
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a recipe is a YAML mapping.")
    return values


def _preset(file: Path) -> Path | None:
    """Where ``preset:NAME`` lies; None for any other name. Raises ConfigError."""
    name = str(file)
    if not name.startswith(_PRESET):
        return None
    name = name.removeprefix(_PRESET)
    if name not in PRESETS:
        known = ", ".join(f"{_PRESET}{preset}" for preset in PRESETS)
        raise ConfigError(
            f"there is no preset {name or 'without a name'}. Give one of {known}, or the path of a "
            "YAML recipe."
        )
    return Path(str(files("vila_mc.config"))) / "presets" / f"{name}.yaml"


def parse_yaml(text: str) -> Any:
    """Plain values of YAML.

    Raises:
        ValueError: it is not valid, holds a key twice, or is too large; the message is one line.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values.")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).replace(_NAMELESS, "at").split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    except (AttributeError, LookupError, TypeError) as error:  # such as !!bool perhaps
        raise ValueError(f"a value is not what its tag says ({error}).") from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in ``node``; what is aliased counts wherever it stands. Raises ValueError."""
    known = counted.get(id(node))
    if known is not None:
        return known
    counted[id(node)] = _MOST_VALUES + 1  # while it is counted: it holds itself
    total = 1
    if node.tag == _INTEGER and len(node.value) > _LONGEST_INTEGER:
        raise ValueError(f"it holds a number of {len(node.value):,} digits.")
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(part, counted) for part in node.value)
    elif isinstance(node, yaml.MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, times in names.items() if times > 1]:
            line = node.start_mark.line + 1
            raise ValueError(f"{twice[0]} stands twice in the mapping of line {line}. Keep one.")
        total += sum(_count(key, counted) + _count(part, counted) for key, part in node.value)
    counted[id(node)] = total
    return total

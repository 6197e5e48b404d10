"""YAML as people write it for runs: bounded in size, and every key once."""

import copy
import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from vila_mc.config.published import PRESET_FOLDER, published_parts
from vila_mc.errors import ConfigError
from vila_mc.foreign_files import ForeignFileError, read_foreign

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
"""Values of a recipe with every alias written out; aliases of aliases multiply."""
_NAMELESS = 'in "<unicode string>",'
"""What yaml calls a text without a file; the message names the file or option itself."""

PRESETS = ("tiny", "small", "base")
"""Recipes that come with the package for models that start from nothing, the smallest first."""
WHOLE_MODELS = ("vila-7b", "vila-13b")
"""Recipes of the package that say what the model is and nothing else: published parts, joined."""
_PRESET = "preset:"

_INTEGER, _LONGEST_INTEGER = "tag:yaml.org,2002:int", 1000
"""In hexadecimal Python reads numbers that it then refuses to print."""


def preset_names() -> list[str]:
    """Every NAME of ``preset:NAME``: recipes, whole models, then published parts."""
    return [*PRESETS, *WHOLE_MODELS, *published_parts()]


def read_recipe(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or of ``preset:NAME``; empty for an empty file.

    A published part is a recipe of its section alone. In any recipe ``model.vision`` and
    ``model.language`` may also be ``preset:NAME`` of one.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not a YAML mapping; there is no
            such preset.
    """
    name = _name_of(str(file))
    if name is None:
        return _with_parts(_read_file(file, file))
    _require_preset(name, preset_names(), "or the path of a YAML recipe")
    if part := published_parts().get(name):
        return {"model": {part.part: _section(name)}}
    return _with_parts(_read_file(PRESET_FOLDER / f"{name}.yaml", file))


def _with_parts(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe with published parts in the place of their names. Raises ConfigError."""
    model = values.get("model")
    if not isinstance(model, dict):
        return values
    sections = {}
    for section in ("vision", "language"):
        given = model.get(section)
        name = _name_of(given) if isinstance(given, str) else None
        if name is not None:
            known = [each for each, part in published_parts().items() if part.part == section]
            _require_preset(name, known, f"or the options of model.{section}", f"model.{section}")
            sections[section] = _section(name)
    return {**values, "model": {**model, **sections}}


def _section(name: str) -> dict[str, Any]:
    # Recipes are merged into one another in place.
    return copy.deepcopy(published_parts()[name].section())


def _name_of(text: str) -> str | None:
    """NAME of ``preset:NAME``; None of any other text."""
    return text.removeprefix(_PRESET) if text.startswith(_PRESET) else None


def _require_preset(
    name: str, known: Iterable[str], otherwise: str, option: str | None = None
) -> None:
    """Refuse a preset that does not exist with those that do.

    Args:
        name: what was given, without ``preset:``.
        known: what may stand there.
        otherwise: what may stand there besides.
        option: where it stands, if not for a whole recipe.

    Raises:
        ConfigError: it is none of them.
    """
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(f"{_PRESET}{each}" for each in known)
    advice = f"Did you mean {_PRESET}{near[0]}?" if near else f"Give one of {listed}, {otherwise}."
    where = f"{option}: " if option else ""
    raise ConfigError(f"{where}there is no preset {name or 'without a name'}. {advice}")


def _read_file(path: Path, file: Path) -> dict[str, Any]:
    """The mapping in a YAML file at ``path``, called ``file`` in messages. Raises ConfigError."""
    try:
        text = read_foreign(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        meant = f"{_PRESET}{file}"
        hint = f"Did you mean {meant}?" if str(file) in preset_names() else "Check its path."
        raise ConfigError(f"there is no recipe {file}. {hint}") from None
    except ForeignFileError as error:
        raise ConfigError(
            f"the recipe {file} {error}. Give a YAML file, which every rank can read, of at most "
            f"{_MOST_BYTES:,} bytes."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}.") from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a recipe is a YAML mapping.")
    return values


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

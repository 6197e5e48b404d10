"""Plain values as their fields mean them, before pydantic turns them into types.

YAML guesses: ``12345`` is a number and ``2026-11-25`` a date, also where a path was meant. Here a
value is told from its field. A word on the command line is taken as it is unless its field holds a
list, which is YAML.
"""

import dataclasses
import datetime
import os
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from vila_mc.errors import ConfigError

_NOTHING = ("none", "null")
"""What stands for the absence of a value on the command line, where a field allows it."""
_VARIABLE = re.compile(r"(?:^|/)(\$(?:\w+|\{\w+\}))")
_LARGEST = 2**63 - 1


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    if get_origin(kind) is Annotated:
        return kinds_of(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_yaml(kind: Any) -> bool:
    """Whether the field's text on the command line is YAML: it holds a list or a mapping."""
    return any(get_origin(one) is tuple or dataclasses.is_dataclass(one) for one in kinds_of(kind))


def from_text(kind: Any, text: str) -> str | None:
    """A word on the command line for a field that holds neither a list nor a mapping."""
    return None if type(None) in kinds_of(kind) and text.lower() in _NOTHING else text


def prepare(kind: Any, value: Any, shown_name: Callable[[str], str] = str, name: str = "") -> Any:
    """Check what pydantic would let through or explain badly, and expand ``~`` in paths.

    Args:
        kind: type of the field.
        value: a plain value for it, of any type.
        shown_name: what a user calls a field, given its dotted name.
        name: dotted name of the field.

    Returns:
        The value to validate.

    Raises:
        ConfigError: text was read as something else, a number is no number or has more than 64
            bits, or a path is empty or was not written out.
    """
    kinds = kinds_of(kind)
    for one in kinds:
        if dataclasses.is_dataclass(one) and isinstance(value, Mapping):
            fields = {field.name: field.type for field in dataclasses.fields(one)}
            dot = "." if name else ""
            return {
                key: prepare(fields[key], part, shown_name, f"{name}{dot}{key}")
                if key in fields
                else part
                for key, part in value.items()
            }
        if get_origin(one) is tuple and isinstance(value, (list, tuple)):
            inner = get_args(one)[0]
            return [
                prepare(inner, part, shown_name, f"{name}.{place}")
                for place, part in enumerate(value)
            ]
    if (str in kinds or Path in kinds) and value is not None:
        return _text(value, shown_name(name), is_path=Path in kinds)
    if int in kinds or float in kinds:
        _check_number(value, shown_name(name))
    return value


def read_path(text: str, name: str) -> Path:
    """A path that a user has written; ``~`` is the home folder.

    Raises:
        ConfigError: it is empty, begins or ends with white space, or holds a variable.
    """
    if not text.strip():
        raise ConfigError(f"{name} is empty; give a path, or . for the working folder.")
    if text != text.strip() or any(character < " " for character in text):
        raise ConfigError(f"{name} is {text!r}; take away the white space around it.")
    if variable := _VARIABLE.search(text):
        raise ConfigError(
            f"{name} is {text}; {variable[1]} is not filled in here. Write out what it stands for."
        )
    expanded = os.path.expanduser(text)  # Path drops the ./ of ./~
    if expanded.startswith("~"):
        raise ConfigError(f"{name} is {text}; there is no such home folder. Put ./ before a ~.")
    return Path(expanded)


def _text(value: Any, name: str, *, is_path: bool) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ConfigError(
            f"{name} is {_shown(value)}, which YAML reads as {_what(value)}. "
            "Put quotes around text."
        )
    return read_path(value, name) if is_path else value


def _check_number(value: Any, name: str) -> None:
    if isinstance(value, bool):
        raise ConfigError(f"{name} is {str(value).lower()}; give a number.")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(f"{name} has {len(str(abs(value)))} digits; give a smaller number.")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:80]


def _what(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "a date"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "a list" if isinstance(value, (list, tuple)) else "a mapping"

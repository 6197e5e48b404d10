"""What a set is made from: for its manifest, and to tell whether another run means the same set."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LONGEST_SHOWN = 60
"""Characters of a value in a message."""
_NAMES_SHOWN = 5
_NOTHING = object()


def describe_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name and size of each file; not where it lies, so that a corpus may move.

    Raises:
        OSError: a file is missing.
    """
    return [{"name": file.name, "bytes": file.stat().st_size} for file in files]


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``name: earlier -> now`` for all that is not the same.

    Args:
        earlier: descriptions by name, as JSON gives them back.
        now: the same of this run.
    """
    return [
        f"{name}: {_difference(earlier.get(name, _NOTHING), now.get(name, _NOTHING))}"
        for name in {**now, **earlier}
        if earlier.get(name, _NOTHING) != now.get(name, _NOTHING)
    ]


def in_short(value: Any) -> str:
    """A value of a description for a person: of many files the number, the bytes and some names."""
    if isinstance(value, list) and value and all(map(_is_file, value)):
        names = ", ".join(file["name"] for file in value[:_NAMES_SHOWN])
        more = ", ..." if len(value) > _NAMES_SHOWN else ""
        return f"{len(value):,}, {sum(file['bytes'] for file in value):,} bytes: {names}{more}"
    return str(value)


def _difference(earlier: Any, now: Any) -> str:
    if isinstance(earlier, list) and isinstance(now, list):
        if len(earlier) != len(now):
            return f"{len(earlier):,} -> {len(now):,} of them"
        earlier, now = next(pair for pair in zip(earlier, now, strict=True) if pair[0] != pair[1])
    return f"{_shown(earlier)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "not recorded"
    if _is_file(value):
        return f"{value['name']} of {value['bytes']:,} bytes"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"name", "bytes"}

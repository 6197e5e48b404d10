"""The door for files that others wrote: bounded in size, and JSON of a known shape or one line.

Imports nothing of this package.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

_MOST_VALUES = 10_000_000
"""Of a JSON text; each takes up to a hundred bytes. A quarter million tokens take some two."""
_LONGEST_NAME = 100
"""Characters of a place in a file that a message shows."""


class ForeignFileError(ValueError):
    """Why a file cannot be used, in one line that goes on after its name."""


def open_foreign(file: Path) -> BinaryIO:
    """Open a file that has an end; a pipe or a device could keep its reader waiting for ever.

    Args:
        file: followed if it is a link.

    Raises:
        OSError: it cannot be opened.
        ForeignFileError: it is a folder, pipe or device.
    """
    return open(file, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ForeignFileError("is a folder, pipe or device, not a file")
    return descriptor


def read_foreign(file: Path, at_most: int) -> bytes:
    """The content of a file.

    Args:
        file: followed if it is a link.
        at_most: bytes.

    Raises:
        OSError: it cannot be opened or read.
        ForeignFileError: it is a folder, pipe or device, which might never end; or it is larger.
    """
    with open_foreign(file) as stream:
        content = stream.read(at_most + 1)
    if len(content) > at_most:
        raise ForeignFileError(f"is larger than {at_most >> 20:,} MiB")
    return content


def require_few_values(content: bytes, at_most: int = _MOST_VALUES) -> None:
    """Refuse JSON of which little text would take much memory. Raises ForeignFileError."""
    if sum(map(content.count, (b",", b"[", b"{"))) > at_most:
        raise ForeignFileError(f"holds more than {at_most:,} values")


def parse_foreign[KindT](
    content: bytes, kind: TypeAdapter[KindT], most_values: int = _MOST_VALUES
) -> KindT:
    """What a JSON text says, as what it should be.

    Raises:
        ForeignFileError: it is not JSON, or of another shape; names the first place that is wrong.
    """
    require_few_values(content, most_values)
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        raise ForeignFileError(f"is damaged: {fault_of(error)}") from None


def fault_of(error: ValidationError) -> str:
    """The first thing that is wrong, in one line of plain words."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:_LONGEST_NAME]
    line = f"{place or 'it'} {what_is_wrong(first)}"
    return "".join(character if character.isprintable() else "?" for character in line)


_TEXT, _LIST, _OBJECT = "must be a text", "must be a list", "must be an object"
_NUMBER, _WHOLE, _TRUTH = "must be a number", "must be a whole number", "must be true or false"
_WRONG = {
    "missing": "is missing",
    "missing_argument": "is missing",
    "missing_keyword_only_argument": "is missing",
    "unexpected_keyword_argument": "is unknown",
    "extra_forbidden": "is unknown",
    "invalid_key": "is unknown",
    "json_invalid": "is not JSON: {error}",
    "value_error": "is wrong: {error}",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": _WHOLE,
    "none_required": "must be left out",
    "path_type": _TEXT,
    "string_unicode": _TEXT,
    **dict.fromkeys(("int_type", "int_parsing"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _TRUTH),
    **dict.fromkeys(("string_type", "bytes_type"), _TEXT),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "iterable_type"), _LIST),
    **dict.fromkeys(("dataclass_type", "dataclass_exact_type", "dict_type"), _OBJECT),
    **dict.fromkeys(("mapping_type", "model_type", "arguments_type"), _OBJECT),
}
"""What to say, by pydantic's name of the mistake: its own words speak of Python's types."""


def what_is_wrong(fault: Mapping[str, Any]) -> str:
    """One mistake that pydantic has found, in plain words that go on after the name of the value.

    Args:
        fault: an entry of ``ValidationError.errors``.
    """
    said = _WRONG.get(fault["type"], "is of another kind than belongs there")
    return said.format_map(fault.get("ctx", {}))

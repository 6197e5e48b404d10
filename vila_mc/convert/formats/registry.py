"""The formats that models are written in and read from, by name.

Importing this is cheap: a format's own module, and torch with it, is imported when it is found.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from vila_mc.errors import CheckpointError

if TYPE_CHECKING:
    from vila_mc.convert.formats.format import Format

FormatName = Literal["hf-vila", "hf-llava", "vila", "llm"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
"""Each is the ``FORMAT`` of the module of its name beside this one."""


def find_format(name: str) -> "Format":
    """A format by its name.

    Raises:
        CheckpointError: there is none of that name.
    """
    if name not in FORMATS:
        raise CheckpointError(f"there is no format {name}; choose {', '.join(FORMATS)}.")
    module = import_module(f"vila_mc.convert.formats.{name.replace('-', '_')}")
    found: Format = module.FORMAT
    return found

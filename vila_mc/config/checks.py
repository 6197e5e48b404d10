"""What every section of a run refuses in the same words."""

from collections.abc import Collection

from pydantic import ConfigDict

from vila_mc.errors import ConfigError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

_LARGEST_SIZE = 10**8
"""No size of a run comes near; a greater one would take all memory before anything refused it."""
_MOST_LAYERS = 10_000
"""Layers are counted one by one when a model is planned."""


def require(condition: bool, message: str) -> None:
    """Refuse a setting unless ``condition`` holds.

    Args:
        condition: what must be so.
        message: what was given, what is allowed and what to do.

    Raises:
        ConfigError: it is not so.
    """
    if not condition:
        raise ConfigError(message)


def require_positive(section: str, **values: float) -> None:
    """Refuse zero, negative and absurd sizes, named as the user writes them. Raises ConfigError."""
    for name, value in values.items():
        require(value > 0, f"{section}.{name} is {value}; it must be greater than 0.")
        most = _MOST_LAYERS if name == "layers" else _LARGEST_SIZE
        require(
            isinstance(value, float) or value <= most,
            f"{section}.{name} is {value}; it must be at most {most}.",
        )


def require_known(option: str, given: str, known: Collection[str]) -> None:
    """Refuse a name that is not one of ``known``. Raises ConfigError."""
    require(given in known, f"{option} is {given}; it must be one of {', '.join(known)}.")

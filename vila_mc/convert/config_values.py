"""Values of a foreign config.json, checked as they are taken."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vila_mc.errors import CheckpointError


class ConfigValues:
    """A part of a config.json.

    Args:
        values: its content.
        where: the file, for messages.
        defaults: what transformers takes where a key is absent.
    """

    def __init__(
        self, values: Mapping[str, Any], where: Path, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self._defaults = defaults or {}

    def get(self, key: str) -> Any:
        """The value, the default where it is absent, None without one."""
        return self.values.get(key, self._defaults.get(key))

    def require(self, key: str, *allowed: object) -> None:
        """Refuse what the engine does not compute. Raises CheckpointError."""
        given = self.get(key)
        if given not in allowed:
            choices = " or ".join(str(value) for value in allowed if value is not None) or "absent"
            raise CheckpointError(
                f"{self.where}: {key} is {given}; only {choices} is supported. Choose another "
                "checkpoint."
            )

    def size(self, key: str) -> int:
        """A positive whole number. Raises CheckpointError."""
        value = self.get(key)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(
                f"{self.where}: {key} is {value}; a positive whole number is needed. Restore the "
                "original config.json."
            )
        return value

    def number(self, key: str) -> float:
        """A positive number. Raises CheckpointError."""
        value = self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(
                f"{self.where}: {key} is {value}; a positive number is needed. Restore the "
                "original config.json."
            )
        return float(value)

    def part(self, key: str, defaults: Mapping[str, Any] | None = None) -> "ConfigValues":
        """A config within the config; empty where it is absent."""
        values = self.get(key)
        if values is not None and not isinstance(values, Mapping):
            raise CheckpointError(f"{self.where}: {key} is {values}; a JSON object is needed.")
        return ConfigValues(values or {}, self.where, defaults)

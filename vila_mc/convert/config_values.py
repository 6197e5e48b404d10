"""Values of a foreign config.json, checked as they are taken; what nobody takes is refused."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vila_mc.convert.harmless_keys import HARMLESS
from vila_mc.errors import CheckpointError, ConfigError

_MOST = 2**31 - 1
_GREATEST = 1e30
_LONGEST_SHOWN = 60
_MOST_SHOWN = 3
_RESTORE = "Restore the original file."


class ConfigValues:
    """A part of a foreign JSON file.

    Args:
        values: its content.
        where: the file, for messages.
        defaults: what transformers takes where a key is absent.
        prefix: what stands in front of its keys in messages, such as ``"text_config."``.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: Path,
        defaults: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.values = values
        self.where = where
        self._defaults = defaults or {}
        self._prefix = prefix
        self._taken: set[str] = set()

    def with_defaults(self, defaults: Mapping[str, Any]) -> "ConfigValues":
        """The same values, nothing taken yet."""
        return ConfigValues(self.values, self.where, defaults, self._prefix)

    def get(self, key: str) -> Any:
        """The value as it is, the default where it is absent, None without one."""
        self._taken.add(key)
        return self.values.get(key, self._defaults.get(key))

    def has(self, key: str) -> bool:
        """Whether the file itself says anything about ``key``."""
        return self.values.get(key) is not None

    def require(self, key: str, *allowed: object) -> None:
        """Refuse what the engine does not compute. Raises CheckpointError."""
        given = self.get(key)
        if not any(_is_same(given, value) for value in allowed):
            choices = (
                " or ".join(_shown(value) for value in allowed if value is not None) or "absent"
            )
            raise self.refusal(key, f"only {choices} is supported. Choose another checkpoint.")

    def size(self, key: str, most: int = _MOST) -> int:
        """A whole number from 1 to ``most``. Raises CheckpointError."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self.refusal(key, f"a whole number from 1 to {most:,} is needed. {_RESTORE}")
        return value

    def from_the_end(self, key: str, most: int) -> int:
        """A layer counted from the end, from -1 to -``most``. Raises CheckpointError."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not -most <= value < 0:
            raise self.refusal(key, f"a layer from -1, the last, to -{most} is needed.")
        return value

    def side(self, key: str) -> int:
        """The side of a square, which may also be a pair of equal sides. Raises CheckpointError."""
        value = self.get(key)
        is_pair = isinstance(value, list) and len(value) == 2 and _is_same(value[0], value[1])
        return self._with(key, value[0]).size(key) if is_pair else self.size(key)

    def number(self, key: str) -> float:
        """A finite number greater than 0. Raises CheckpointError."""
        value = self.get(key)
        if not _is_number(value) or not value > 0:
            raise self.refusal(key, f"a number greater than 0 is needed. {_RESTORE}")
        return float(value)

    def share(self, key: str) -> float:
        """A number from 0 to below 1; 0 where nothing is said. Raises CheckpointError."""
        value = 0.0 if self.get(key) is None else self.get(key)
        if not _is_number(value) or not 0 <= value < 1:
            raise self.refusal(key, f"a number of at least 0 and below 1 is needed. {_RESTORE}")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` finite numbers. Raises CheckpointError."""
        value = self.get(key)
        is_list = isinstance(value, (list, tuple)) and all(map(_is_number, value))
        if not is_list or len(value) != count:
            raise self.refusal(key, f"a list of {count} numbers is needed. {_RESTORE}")
        return tuple(map(float, value))

    def flag(self, key: str) -> bool:
        """True or false; false where nothing is said. Raises CheckpointError."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, f"true or false is needed. {_RESTORE}")
        return bool(value)

    def part(self, key: str) -> "ConfigValues":
        """The object within; an empty one where it is absent. Raises CheckpointError."""
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refusal(key, f"a JSON object is needed. {_RESTORE}")
        return ConfigValues(value or {}, self.where, prefix=f"{self._prefix}{key}.")

    def refuse_others(self, *harmless: Collection[str]) -> None:
        """Refuse every key that says something and that nobody has taken.

        Args:
            harmless: keys that change nothing, besides ``HARMLESS`` and what begins with ``_``.

        Raises:
            CheckpointError: it names them.
        """
        for key in filter(_names_code, self.values):
            value = self.values[key]
            # transformers fetches and runs a kernel of that name where it has a slash.
            if value is not None and (not isinstance(value, str) or "/" in value):
                raise self.refusal(key, "only a name of transformers' own is taken. Take it out.")
        known = self._taken.union(HARMLESS, *harmless)
        others = [
            key for key in self.values if self.has(key) and key not in known and key[:1] != "_"
        ]
        if others:
            shown = [
                f"{self._prefix}{_shown(key)} ({_shown(self.values[key])})"
                for key in others[:_MOST_SHOWN]
            ]
            more = f" and {len(others) - _MOST_SHOWN} more" * (len(others) > _MOST_SHOWN)
            raise CheckpointError(
                f"{self.where} says what is not known here and may change what the model computes: "
                f"{', '.join(shown)}{more}. Take out of the file what changes nothing, or choose "
                "another checkpoint."
            )

    def refusal(self, key: str, why: str) -> CheckpointError:
        """That a value cannot be used; ``why`` says what can, and what to do."""
        return CheckpointError(
            f"{self.where}: {self._prefix}{key} is {_shown(self.get(key))}; {why}"
        )

    @contextmanager
    def describing(self) -> Iterator[None]:
        """Refusals of the config made of these values name their file. Raises CheckpointError."""
        try:
            yield
        except ConfigError as error:
            raise CheckpointError(f"{self.where} describes no model: {error}") from None

    def _with(self, key: str, value: Any) -> "ConfigValues":
        return ConfigValues({key: value}, self.where, prefix=self._prefix)


def _is_same(given: Any, allowed: object) -> bool:
    """Equal, and true is not 1."""
    return isinstance(given, bool) == isinstance(allowed, bool) and given == allowed


def _is_number(value: Any) -> bool:
    """Neither NaN nor infinite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= _GREATEST


def _shown(value: Any) -> str:
    """As JSON has it where it is short, on one line in any case."""
    if value is None or isinstance(value, bool):
        return {None: "absent", True: "true", False: "false"}[value]
    text = _one_line(str(value))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _one_line(text: str) -> str:
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(printable)


def _names_code(key: str) -> bool:
    """Whether a key says by which code something is computed: ``_attn_implementation`` and such."""
    return "_implementation" in key

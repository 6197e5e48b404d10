"""PEFT's ``target_modules``: which linear layers of a model it names, as PEFT reads it.

A list names modules by the end of their names, one text is a regular expression of whole names.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import regex

from vila_mc.convert.config_values import ConfigValues
from vila_mc.errors import CheckpointError

_KEY = "target_modules"
_ALL_LINEAR = "all-linear"
"""What PEFT itself replaces by a list before it writes the file."""
_MOST_NAMES = 1 << 14
_LONGEST = 1 << 12
"""Characters of a name or an expression; ours have a thousand."""
_SECONDS = 1.0
"""For one module: an expression that takes longer is meant to."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What an ``adapter_config.json`` says that has adapters."""

    names: tuple[str, ...]
    """Ends of names of modules, or one regular expression."""
    is_pattern: bool
    where: str
    """The file, for messages."""

    @staticmethod
    def read(config: ConfigValues) -> "Targets":
        """Take them from the file. Raises CheckpointError: they are none, or too long."""
        value = config.get(_KEY)
        names = [value] if isinstance(value, str) else value
        is_list = isinstance(names, list) and 0 < len(names) <= _MOST_NAMES
        if not is_list or not all(isinstance(n, str) and 0 < len(n) <= _LONGEST for n in names):
            raise config.refusal(_KEY, "the names of modules are needed, or one expression.")
        if isinstance(value, str) and "{" in value:  # a count can take a machine's whole memory
            raise config.refusal(_KEY, "an expression without counts is needed.")
        if value == _ALL_LINEAR:
            raise config.refusal(_KEY, "peft writes the names that it stands for. Save it again.")
        return Targets(tuple(names), isinstance(value, str), str(config.where))

    def require_same(self, adapted: Collection[str], linear: Iterable[str]) -> None:
        """Refuse a file whose adapters are not those that are named.

        Args:
            adapted: modules that the file holds adapters of.
            linear: every linear layer of the model.

        Raises:
            CheckpointError: it names one that is named and has none, or has one and is not named.
        """
        unnamed = sorted(set(adapted) - set(self._named(adapted)))
        if unnamed:
            raise self._refusal(f"does not name {unnamed[0]}, of which there is an adapter")
        if not self.is_pattern:
            ends = {end for module in adapted for end in _ends_of(module)}
            if idle := [name for name in self.names if name not in ends]:
                raise self._refusal(f"names {ascii(idle[0])[1:-1]}, of which there is no adapter")
        without = [each for each in self._named(linear) if each not in adapted]
        if without:
            raise self._refusal(f"also means {without[0]}, of which there is no adapter")

    def _named(self, modules: Iterable[str]) -> Iterator[str]:
        if not self.is_pattern:
            names = set(self.names)
            yield from (each for each in modules if not names.isdisjoint(_ends_of(each)))
            return
        try:
            pattern = regex.compile(self.names[0])
            yield from (each for each in modules if pattern.fullmatch(each, timeout=_SECONDS))
        except (regex.error, RecursionError, TimeoutError, MemoryError) as error:
            why = "takes too long" if isinstance(error, TimeoutError) else f"is none ({error})"
            raise self._refusal(f"is a regular expression that {why}") from None

    def _refusal(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: {_KEY} {why}. Restore the files that peft saved, both of one run."
        )


def _ends_of(module: str) -> list[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]

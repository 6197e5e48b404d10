"""What a run has written of itself, read line by line: a run of any length fits the memory."""

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vila_mc.errors import DataError
from vila_mc.foreign_files import ForeignFileError, open_foreign
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.observe.thinned import RESERVED, Record, Thinned

_LARGEST_BYTES = 2**34
"""Some 60 million steps, which take minutes to read."""
_LONGEST_LINE = 2**20
_LARGEST_FIGURE = 1e40
"""Above what fp32 holds, and below what sums and axes overflow at."""
_LARGEST_STEP = 2**53
_MOST_FIGURES = 256
"""Of a record."""
_LONGEST_NAME = 100
_LONGEST_MESSAGE = 500
_EVENTS = 200
"""First and last events that are kept; all are counted."""


@dataclass(slots=True)
class RunRecord:
    """A run, from its metrics."""

    _steps: Thinned = field(default_factory=Thinned)
    _validations: Thinned = field(default_factory=Thinned)
    _first_events: list[Record] = field(default_factory=list)
    _last_events: deque[Record] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    num_events: Counter[str] = field(default_factory=Counter)
    """By kind."""
    passed_over: int = 0
    """Lines that are no record; the last does not count, which may not be whole yet."""

    def steps(self) -> list[Record]:
        """Of steps, in their order; of a long run each stands for several (``together``)."""
        return self._steps.records()

    def validations(self) -> list[Record]:
        """Of validations, likewise."""
        return self._validations.records()

    def events(self) -> list[Record]:
        """The first and last events, as they came."""
        return self._first_events + list(self._last_events)

    def records(self) -> list[Record]:
        """Of steps and validations, each validation after its step."""
        both = [*self.steps(), *self.validations()]
        return sorted(both, key=lambda one: (one["step"], "validation_loss" in one))

    def take(self, values: dict[str, Any]) -> None:
        """Sort in a record; of a step that stands twice, the later one counts."""
        if isinstance(kind := values.get("event"), str):
            self._take_event(kind[:_LONGEST_NAME], values)
        elif "validation_loss" in values:
            self._validations.add(_figures(values))
        else:
            self._steps.drop_from(values["step"])
            self._validations.drop_from(values["step"])
            self._steps.add(_figures(values))

    def _take_event(self, kind: str, values: dict[str, Any]) -> None:
        if kind in self.num_events or len(self.num_events) < _MOST_FIGURES:
            self.num_events[kind] += 1
        message = values.get("message")
        event = {
            "step": values["step"],
            "event": kind,
            "message": message[:_LONGEST_MESSAGE] if isinstance(message, str) else "",
        }
        few = len(self._first_events) < _EVENTS
        (self._first_events if few else self._last_events).append(event)


def read_record(run: Path) -> RunRecord:
    """Read the metrics of a run, which may still go on.

    A line that is not whole is passed over. Figures that are not finite, or beyond what a run
    computes, are None; an entry of a figure that has several is a figure of its own,
    ``loss_by_entry.0``.

    Args:
        run: its output, or its metrics file.

    Raises:
        DataError: there are no metrics.
    """
    path = run / METRICS_NAME if run.is_dir() else run
    found = RunRecord()
    try:
        with open_foreign(path) as stream:
            if stream.seek(0, 2) > _LARGEST_BYTES:
                raise ForeignFileError(f"is larger than {_LARGEST_BYTES >> 20:,} MiB")
            stream.seek(0)
            for line in _lines(stream):
                values = _values(line)
                if values is not None:
                    found.take(values)
                elif line.endswith(b"\n") and line.strip():
                    found.passed_over += 1
    except FileNotFoundError:
        raise DataError(
            f"{run} is no run: there is no {METRICS_NAME}. Give the folder that a run writes to, "
            "or its metrics."
        ) from None
    except ForeignFileError as error:
        raise DataError(f"{path} {error}.") from None
    if not found.records():
        raise DataError(f"{path} holds no record of a step yet.")
    return found


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Its lines; of one that is longer than any of ours, the beginning."""
    while line := stream.readline(_LONGEST_LINE):
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(_LONGEST_LINE)):
            line = line[:_LONGEST_NAME] + b"\n"  # no record any more
        yield line


def _values(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is no record of ours."""
    try:
        values = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values if 0 <= values["step"] < _LARGEST_STEP else None


def _figures(values: dict[str, Any]) -> Record:
    """The numbers of a record by name, those of lists and objects under names of their own."""
    named = islice(_named(values), _MOST_FIGURES)
    return {name[:_LONGEST_NAME]: _figure(value) for name, value in named if name not in RESERVED}


def _named(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", entry) for key, entry in value.items())
        elif isinstance(value, list):
            yield from ((f"{name}.{number}", entry) for number, entry in enumerate(value))
        else:
            yield name, value


def _figure(value: Any) -> Any:
    if not isinstance(value, (bool, int, float)):
        return None
    return value if abs(value) < _LARGEST_FIGURE else None  # neither is NaN below it

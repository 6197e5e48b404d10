"""When a run was started and how each start ended: ``history.jsonl`` beside its metrics.

One JSON object a line, appended in one write, so that starts, launchers of several machines and
readers need not know of each other. docs/figures.md has the schema.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vila_mc.errors import ExitCode
from vila_mc.files import identity_of
from vila_mc.foreign_files import open_foreign
from vila_mc.observe.record import StartRecord
from vila_mc.processes import RESTARTS_OF_TORCHRUN

HISTORY_NAME = "history.jsonl"
RESTART = "VILA_MC_RESTART"
"""Environment variable: how often our launcher has started this run again by itself."""
_END_BYTES = 2**26
"""Of the file that are read: some ten thousand starts."""
_LONGEST_CAUSE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A start has ended."""

    time: float
    """When, in seconds since the epoch."""
    code: int
    """An ``ExitCode``."""
    cause: str
    """Of a fault or mistake, in one line; else empty."""
    host: str
    """The machine that says so."""
    is_last: bool = True
    """Whether that machine does not start the run again by itself."""


_KINDS: dict[str, TypeAdapter[StartRecord] | TypeAdapter[End]] = {
    "start": TypeAdapter(StartRecord),
    "end": TypeAdapter(End),
}


def restarts_before(environment: Mapping[str, str]) -> int:
    """How often a launcher, ours or torchrun, has started this run again by itself."""
    said = environment.get(RESTART) or environment.get(RESTARTS_OF_TORCHRUN, "0")
    return int(said) if said.isdecimal() else 0


def record_start(output: Path, start: StartRecord) -> None:
    """Append a start."""
    _append(output, {"event": "start"} | asdict(start))


class Ends:
    """Writes down how starts of a run end, unless another directory has taken its output's place.

    Args:
        output: of the run, before its first start.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._place = output, identity_of(output)

    def record(self, code: ExitCode, cause: str = "", *, is_last: bool = True) -> None:
        """Append the end of a start."""
        if not self._is_in_place():
            return
        cause, host = cause[:_LONGEST_CAUSE], socket.gethostname()
        end = End(time=time.time(), code=code, cause=cause, host=host, is_last=is_last)
        _append(self._output, {"event": "end"} | asdict(end))

    def _is_in_place(self) -> bool:
        now = identity_of(self._output)
        if self._place is None:  # the run has made its output, which holds something
            return now is not None and any(self._output.iterdir())
        return now == self._place


def read_history(output: Path) -> list[StartRecord | End]:
    """All of it, in order; none where there is no file. What is not whole is passed over.

    Of a history without end, such as that of a job which a scheduler has started every minute for
    weeks, only what is last.

    Raises:
        ForeignFileError: it is no file.
    """
    try:
        with open_foreign(output / HISTORY_NAME) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            content = file.read(_END_BYTES)
    except OSError:
        return []
    events: list[StartRecord | End] = []
    for line in content.decode(errors="replace").split("\n"):
        try:
            values = json.loads(line)
            kind = _KINDS[values.pop("event")]
            events.append(kind.validate_python(values))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError):
            continue
    return events


def restarts_of(events: list[StartRecord | End]) -> int:
    """Starts that a launcher made by itself."""
    return sum(isinstance(event, StartRecord) and event.restart > 0 for event in events)


def _append(output: Path, values: dict[str, Any]) -> None:
    """One line; an output that cannot be written (any more) is not worth a run."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(output / HISTORY_NAME, flags, 0o666)
        try:
            # What a full disk has cut short ends where the next line begins.
            os.write(descriptor, b"\n" + json.dumps(values).encode() + b"\n")
        finally:
            os.close(descriptor)

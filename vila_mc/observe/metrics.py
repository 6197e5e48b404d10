"""The record of a run, one JSON object per optimizer step, validation and event."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vila_mc.files import identity_of, write_whole
from vila_mc.foreign_files import ForeignFileError, open_foreign
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord

METRICS_NAME = "metrics.jsonl"
_END_BYTES = 2**18
"""Of the file; hundreds of records."""


class MetricsLog:
    """Appends to ``directory/metrics.jsonl``.

    Args:
        directory: the run's output; it must exist.
        after_step: a resumed run's last step; later records of the run that died are dropped, so
            that no step stands twice.
    """

    def __init__(self, directory: Path, after_step: int = 0) -> None:
        self.path = directory / METRICS_NAME
        kept = [record for record in read_metrics(self.path) if record["step"] <= after_step]
        write_whole(self.path, "".join(map(_line, kept)))
        self._place = identity_of(directory)
        self._open()

    def start(self, record: StartRecord) -> None:
        """Nothing: what a run is stands in its history."""

    def write(self, record: StepRecord) -> None:
        """Append one step."""
        self._append(record)

    def write_validation(self, record: ValidationRecord) -> None:
        """Append one validation."""
        self._append(record)

    def write_event(self, event: Event) -> None:
        """Append one event."""
        self._append(event)

    def _append(self, record: StepRecord | ValidationRecord | Event) -> None:
        if self._is_moved_away():
            self._file.close()
            self._open()
        self._file.write(_line(asdict(record)))
        self._file.flush()

    def _is_moved_away(self) -> bool:
        """As by a rotation of logs. Where another directory stands, nothing is begun."""
        moved = identity_of(self.path) != self._identity
        return moved and identity_of(self.path.parent) == self._place

    def _open(self) -> None:
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # closed in close()
        self._identity = identity_of(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_step(output: Path) -> int:
    """The last step that a run has recorded; 0 if there is none. Reads only the end of the file."""
    try:
        with open_foreign(output / METRICS_NAME) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            lines = file.read(_END_BYTES).split(b"\n")
    except (OSError, ForeignFileError):
        return 0
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if type(step) is int:
            return step
    return 0


def _line(values: dict[str, Any]) -> str:
    finite = {name: _finite(value) for name, value in values.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same value; None for what is not finite, which JSON has no word for."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a metrics file; none if there is no file.

    A loss or gradient norm that was not finite is None.

    A run that was killed may have left half a line at the end, which is passed over, as is what a
    disk has damaged.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records

"""Where a run stands, from its files alone: it may go on, be done, dead or damaged. No torch."""

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.errors import CheckpointError, DataError, ExitCode
from vila_mc.files import is_held
from vila_mc.foreign_files import ForeignFileError, open_foreign
from vila_mc.observe.console import clock
from vila_mc.observe.history import End, read_history, restarts_of
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.observe.record import StartRecord

_END_BYTES = 2**22
"""Of the metrics that are read: some ten thousand steps."""
_LONGEST_TEXT = 500
_RECENT = 50
"""Steps whose mean is shown, and compared with as many before."""
_LEVEL = 0.005
"""Changes of the loss below this share are none."""
_SILENT_SECONDS, _SILENT_STEPS = 60.0, 20
"""A run without a step for longer than both may hang."""
_LONGEST_WAIT_SECONDS = 1800.0
"""From a fault to the next start's record: the longest pause, and ranks that take long to start."""
_STATES = {
    ExitCode.OK: "done",
    ExitCode.FAULT: "failed",
    ExitCode.USER_ERROR: "refused to go on",
    ExitCode.REQUEUE: "stopped for its scheduler; the same command goes on",
    ExitCode.INTERRUPTED: "stopped by a person; the same command goes on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands; None is not known."""

    state: str
    cause: str
    """Of a run that failed, in one line; else empty."""
    phase: str | None
    ranks: int | None
    step: int
    steps: int | None
    """Of the whole run."""
    loss: float | None
    """Mean of the last steps."""
    loss_before: float | None
    """Mean of as many before them."""
    step_ms: float | None
    samples_per_second: float | None
    seconds_since_step: float | None
    seconds_left: float | None
    """Until the last step, at the pace of the last ones."""
    checkpoint: str | None
    """Name of the newest, or what is wrong with it."""
    checkpoint_age_seconds: float | None
    alarms: int
    """In what was read of the metrics."""
    last_alarm: str | None
    skipped_steps: int
    """Of those that were read."""
    starts: int
    restarts: int
    """Starts among them that the run made by itself after a fault."""


def standing_of(output: Path) -> Standing:
    """Where the run in ``output`` stands now. Changes nothing there.

    Raises:
        DataError: it is no run's output, or a file in it is none.
    """
    if not output.is_dir():
        raise DataError(f"{output} is no directory. Give the train.output of a run.")
    is_running = is_held(output)
    metrics = output / METRICS_NAME
    try:
        records, events = _recent_records(metrics), read_history(output)
    except ForeignFileError as error:
        raise DataError(f"{output}: what should be its record {error}.") from None
    checkpoint, age = _checkpoint(output)
    if not (is_running or records or events or checkpoint):
        raise DataError(
            f"{output} is no run: it has neither {METRICS_NAME} nor a checkpoint. Give the "
            "train.output of a run."
        )
    steps = [record for record in records if "loss" in record]
    alarms = [record for record in records if isinstance(record.get("event"), str)]
    start = next((event for event in reversed(events) if isinstance(event, StartRecord)), None)
    step = max((record["step"] for record in records), default=start.step if start else 0)
    pace = _pace(steps)
    silence = time.time() - metrics.stat().st_mtime if records else None
    state, cause = _state(is_running, events, silence, pace)
    return Standing(
        state=state,
        cause=cause,
        phase=start.phase if start else None,
        ranks=start.ranks if start else None,
        step=step,
        steps=start.steps if start else None,
        loss=_mean(steps[-_window(steps) :], "loss"),
        loss_before=_mean(steps[-2 * _window(steps) : -_window(steps)], "loss"),
        step_ms=pace,
        samples_per_second=_samples_per_second(steps),
        seconds_since_step=silence,
        seconds_left=_seconds_left(records, start.steps - step, pace) if start and pace else None,
        checkpoint=checkpoint,
        checkpoint_age_seconds=age,
        alarms=len(alarms),
        last_alarm=str(alarms[-1].get("message"))[:_LONGEST_TEXT] if alarms else None,
        skipped_steps=sum(record.get("skipped") is True for record in steps),
        starts=sum(isinstance(event, StartRecord) for event in events),
        restarts=restarts_of(events),
    )


def lines_of(standing: Standing) -> list[str]:
    """For a person."""
    of = f" of {standing.steps:,}" if standing.steps is not None else ""
    facts = {"state": f"{standing.state}{f': {standing.cause}' if standing.cause else ''}"}
    if standing.phase is not None:
        facts["phase"] = f"{standing.phase} on {standing.ranks} ranks"
    facts["step"] = f"{standing.step:,}{of}"
    if standing.seconds_since_step is not None:
        facts["step"] += f", {clock(standing.seconds_since_step)} ago"
    if standing.loss is not None:
        facts["loss"] = f"{standing.loss:.4f}{_trend(standing)}"
    if standing.step_ms is not None:
        rate = standing.samples_per_second
        facts["speed"] = f"{standing.step_ms:,.0f} ms a step"
        facts["speed"] += f", {rate:,.1f} samples/s" if rate is not None else ""
    if standing.seconds_left is not None:
        facts["time left"] = clock(standing.seconds_left)
    age = standing.checkpoint_age_seconds
    facts["checkpoint"] = standing.checkpoint or "none yet"
    facts["checkpoint"] += f", {clock(age)} old" if age is not None else ""
    facts["alarms"] = f"{standing.alarms:,}"
    facts["alarms"] += f", the last: {standing.last_alarm}" if standing.last_alarm else ""
    if standing.skipped_steps:
        facts["skipped steps"] = f"{standing.skipped_steps:,} of the last ones"
    facts["starts"] = f"{standing.starts:,}, of which {standing.restarts:,} restarts after a fault"
    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items()]


def _recent_records(metrics: Path) -> list[dict[str, Any]]:
    """What the end of the metrics holds, by step. Raises ForeignFileError."""
    try:
        with open_foreign(metrics) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_BYTES))
            content = file.read(_END_BYTES)
    except FileNotFoundError:
        return []
    records = []
    for line in content.decode(errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records


def _state(
    is_running: bool, events: Sequence[StartRecord | End], silence: float | None, pace: float | None
) -> tuple[str, str]:
    """What a run does, and why it does not."""
    last = events[-1] if events else None
    if is_running:
        limit = max(_SILENT_SECONDS, _SILENT_STEPS * (pace or 0) / 1000)
        is_silent = silence is not None and silence > limit
        return ("running, but silent" if is_silent else "running"), ""
    if isinstance(last, End) and not last.is_last:
        waits = time.time() - last.time < _LONGEST_WAIT_SECONDS
        return ("starts again by itself" if waits else "killed before it started again"), last.cause
    if isinstance(last, End):
        known = last.code in set(ExitCode)
        return (_STATES[ExitCode(last.code)] if known else f"ended with {last.code}"), last.cause
    return ("killed" if last else "not running"), ""


def _checkpoint(output: Path) -> tuple[str | None, float | None]:
    """Name and age of the newest."""
    try:
        newest = newest_checkpoint(output)
    except CheckpointError as error:
        return str(error), None
    return (newest.name, time.time() - newest.stat().st_mtime) if newest else (None, None)


def _window(steps: Sequence[object]) -> int:
    return max(1, min(_RECENT, len(steps) // 2))


def _figures(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """What records have under a name, as far as it is a number that can be counted with."""
    values = [record.get(name) for record in records]
    return [float(v) for v in values if isinstance(v, (int, float)) and abs(v) < 1e40]


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _figures(records, name)
    return statistics.fmean(values) if values else None


def _pace(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Milliseconds of a step."""
    return _mean(steps[-_RECENT:], "step_ms")


def _seconds_left(records: Sequence[Mapping[str, Any]], steps_left: int, pace: float) -> float:
    """With the saves and validations between steps, as often as they came until now."""
    steps = sum("step_ms" in record for record in records)
    between = sum(_figures(records, "save_ms")) + sum(_figures(records, "validation_ms"))
    return steps_left * (pace + between / max(1, steps)) / 1000


def _samples_per_second(steps: Sequence[Mapping[str, Any]]) -> float | None:
    samples, pace = _mean(steps[-_RECENT:], "samples"), _pace(steps)
    return 1000 * samples / pace if samples is not None and pace else None


def _trend(standing: Standing) -> str:
    now, before = standing.loss, standing.loss_before
    if now is None or before is None:
        return ""
    change = (now - before) / max(abs(before), 1e-12)
    if abs(change) < _LEVEL:
        return f", level ({before:.4f} before)"
    return f", {'rising' if change > 0 else 'falling'} from {before:.4f}"

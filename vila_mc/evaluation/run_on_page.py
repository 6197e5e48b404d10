"""A run as the report shows it, from all that it has written of itself. No torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.data import DataConfig
from vila_mc.errors import CheckpointError, ExitCode
from vila_mc.evaluation.curves import named_datasets
from vila_mc.foreign_files import ForeignFileError
from vila_mc.observe.history import End, read_history, restarts_of
from vila_mc.observe.record import StartRecord
from vila_mc.observe.run_reader import read_record
from vila_mc.observe.run_summary import summary
from vila_mc.observe.thinned import Record


@dataclass(frozen=True, slots=True)
class Moment:
    """A start of a run, or its end."""

    time: str
    """UTC."""
    what: str
    said: str
    """Of a fault or mistake, in one line; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOnPage:
    """A run, as the page shows it beside others."""

    name: str
    phase: str
    records: Sequence[Record]
    """Of its steps and validations."""
    facts: dict[str, str]
    """Name -> value, shown as they are."""
    events: Sequence[Record] = ()
    """Its alarms, each with ``step``, ``event`` and ``message``."""
    num_events: dict[str, int] = field(default_factory=dict)
    """How many there were, by kind."""
    moments: Sequence[Moment] = ()
    """Its starts and ends, in order."""


def run_on_page(run: Path, name: str) -> RunOnPage:
    """Read a run, which may still go on.

    Args:
        run: its output, or its metrics file.
        name: what the page calls it.

    Raises:
        DataError: there are no metrics.
    """
    folder = run if run.is_dir() else run.parent
    record = read_record(run)
    records = record.records()
    phase, of_checkpoint, datasets = _of_newest_checkpoint(folder)
    of_starts, moments = _starts(folder)
    facts = summary(records) | of_checkpoint | of_starts
    if record.num_events:
        counts = sorted(record.num_events.items())
        facts["alarms"] = ", ".join(f"{count:,} {kind}" for kind, count in counts)
    if record.passed_over:
        facts["damaged"] = f"{record.passed_over:,} of the lines of its metrics are no record"
    return RunOnPage(
        name=name,
        phase=phase,
        records=named_datasets(records, datasets),
        facts=facts,
        events=record.events(),
        num_events=dict(record.num_events),
        moments=moments,
    )


def _of_newest_checkpoint(folder: Path) -> tuple[str, dict[str, str], list[str]]:
    """The phase of a run, what else its newest checkpoint says, and names of what it validates on.

    A run may have no checkpoint yet.
    """
    try:
        newest = newest_checkpoint(folder)
        if newest is None:
            return "training", {}, []
        manifest = Manifest.read(newest)
    except CheckpointError as error:
        return "training", {"checkpoint": str(error)}, []
    train = manifest.config.train
    facts = {"checkpoint": f"{newest.name} of {train.steps:,} steps"}
    if manifest.layout is not None:
        facts["layout"] = f"{manifest.layout}, micro-batch {train.rows_of_a_pass()}"
    facts["computed in"] = manifest.computed_in()
    facts["written by"] = manifest.written_by()
    return train.phase, facts, _datasets(manifest.config.data)


def _datasets(data: DataConfig) -> list[str]:
    """Names of the datasets that a run validates on, each once."""
    names = [entry.path.name for entry in data.validation]
    if data.held_out:
        names += [f"{entry.path.name}, held out" for entry in data.blend]
    return [name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names)]


def _starts(folder: Path) -> tuple[dict[str, str], list[Moment]]:
    """How often a run was started, the last time on what; each start and end."""
    try:
        history = read_history(folder)
    except ForeignFileError as error:
        return {"starts": f"its history {error}"}, []
    if not history:
        return {}, []
    starts = [one for one in history if isinstance(one, StartRecord)]
    facts = _last_start(starts[-1]) if starts else {}
    facts["starts"] = f"{len(starts):,}, {restarts_of(history):,} of them by itself after a fault"
    if isinstance(last := history[-1], End):
        facts["last end"] = _moment(last).what
    return facts, [_moment(one) for one in history]


def _last_start(start: StartRecord) -> dict[str, str]:
    facts = {"device": f"{start.ranks:,} x {start.device}, the first on {start.host}"}
    if start.git is not None:
        changed = " with changes" if start.git.get("is_modified") else ""
        facts["code"] = f"commit {start.git.get('commit')}{changed}"
    return facts


def _moment(event: StartRecord | End) -> Moment:
    if isinstance(event, StartRecord):
        by = f"restart {event.restart:,}" if event.restart else "started"
        what = f"{by} on {event.ranks:,} ranks, after step {event.step:,} of {event.steps:,}"
        return Moment(_clock(event.time), what, "")
    known = {code.value: code.name.lower().replace("_", " ") for code in ExitCode}
    what = f"ended with {event.code}, {known.get(event.code, 'which is none of ours')}"
    return Moment(_clock(event.time), f"{what}, on {event.host}", event.cause)


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "?"

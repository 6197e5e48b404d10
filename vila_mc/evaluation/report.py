"""One self-contained HTML page: curves, accuracy against chance, answers, alarms, facts of runs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from vila_mc.errors import DataError
from vila_mc.evaluation.curves import (
    AXES,
    COLOURS,
    Course,
    alarms_of,
    draw,
    lines_of,
    panels_of,
)
from vila_mc.evaluation.run_on_page import RunOnPage
from vila_mc.evaluation.scores import TaskScore, by_task, score
from vila_mc.evaluation.time_split import PARTS, time_split
from vila_mc.files import write_whole
from vila_mc.observe.thinned import Record, all_steps

SHEET_LENGTH = 48
"""Answers shown per task, in the order given."""
MAX_WRONG = 200
"""Further wrong answers shown per task, behind a fold."""
MAX_EVENTS = 50
"""Alarms, and starts and ends, shown of a run: the last ones."""

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One question that was put to the model."""

    task: str
    """Name of the task; rows of one task are counted together."""
    question: str
    images: tuple[bytes, ...]
    """The images of the question as PNG or JPEG files, in order."""
    answer: str
    """What the model answered."""
    expected: str
    """The right answer."""
    is_correct: bool
    chance: float | None
    """Accuracy of an answer that does not look, from 0 to 1; None where that is not known."""


def write_report(
    output: Path,
    title: str,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    answers: Sequence[AnswerRow],
    facts: Mapping[str, str],
) -> None:
    """Write the page of a model; it appears whole or not at all, and loads nothing from elsewhere.

    Args:
        output: the HTML file; missing directories are made.
        title: heading of the page.
        curves: phase name -> records with ``step`` and any of ``loss``, ``validation_loss``,
            ``learning_rate`` and what else metrics have.
        answers: rows of any number of tasks.
        facts: name -> value, shown as they are (layout, versions, time).

    Raises:
        DataError: an image of an answer is neither PNG nor JPEG.
    """
    phases = [(name, _course(records)) for name, records in curves.items()]
    _write(
        output,
        title,
        groups=[_group(name, number, {name: one}) for number, (name, one) in enumerate(phases)],
        scores={"": score(answers)} if answers else {},
        sheets=[_sheet(task, rows) for task, rows in by_task(answers).items()],
        columns={"": facts} if facts else {},
        splits=[],
        alarms=[],
        starts=[],
    )


def write_runs(
    output: Path, title: str, runs: Sequence[RunOnPage], scores: Mapping[str, Sequence[TaskScore]]
) -> None:
    """Write the page of one run, or of several side by side.

    Args:
        output: the HTML file; missing directories are made.
        title: heading of the page.
        runs: at least one, each with a name of its own.
        scores: of answers that were counted, by what they are called.
    """
    of_runs = {run.name: _course(run.records, run.events) for run in runs}
    _write(
        output,
        title,
        groups=[_group(title, 0, of_runs)],
        scores=scores,
        sheets=[],
        columns={run.name: run.facts for run in runs},
        splits=[one for run in runs if (one := time_split(run.name, run.records))],
        alarms=[_alarms(run) for run in runs if run.num_events],
        starts=[_starts(run) for run in runs if run.moments],
    )


def _write(output: Path, title: str, **content: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vila_mc.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "data_uri": _data_uri}
    columns: Mapping[str, Mapping[str, str]] = content["columns"]
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    page = environment.get_template("report.html.j2").render(
        title=title, axes=AXES, parts=PARTS, fact_names=list(names), **content
    )
    write_whole(output, page)


def _course(records: Sequence[Mapping[str, Any]], events: Sequence[Record] = ()) -> Course:
    return Course.of([dict(one) for one in records], events)


def _group(name: str, number: int, runs: Mapping[str, Course]) -> Any:
    """The panels of runs whose curves share them."""
    courses = list(runs.values())
    axes = [axis for axis in AXES if all(course.has(axis) for course in courses)]
    panels = []
    for place, panel in enumerate(panels_of(courses)):
        pictures = []
        for axis in axes:
            if lines := lines_of(panel, axis, courses):
                picture = f"curve-{number}-{place}-{axis.name}"
                marks = alarms_of(panel, axis, courses)
                pictures.append((axis.name, draw(panel, axis, lines, marks, picture)))
        if pictures:
            panels.append({"name": panel.name, "dataset": panel.dataset, "pictures": pictures})
    return {
        "name": name,
        "number": number,
        "runs": [
            {"name": run, "colour": COLOURS[place % len(COLOURS)], "losses": _losses(course)}
            for place, (run, course) in enumerate(zip(runs, courses, strict=True))
        ],
        "axes": axes,
        "panels": panels,
    }


def _losses(run: Course) -> Any:
    """How many steps a run has, the first and the last loss; None without any."""
    known = [step for step in run.steps if step.get("loss") is not None]
    if not known:
        return None
    return {
        "steps": all_steps(known),
        "first": known[0]["loss"],
        "last": known[-1]["loss"],
        "a_point": -(-all_steps(run.steps) // len(run.steps)),
    }


def _alarms(run: RunOnPage) -> Any:
    return {
        "run": run.name,
        "counts": sorted(run.num_events.items(), key=lambda item: (-item[1], item[0])),
        "number": sum(run.num_events.values()),
        "shown": list(run.events[-MAX_EVENTS:]),
    }


def _starts(run: RunOnPage) -> Any:
    return {"run": run.name, "number": len(run.moments), "shown": run.moments[-MAX_EVENTS:]}


def _sheet(task: str, rows: Sequence[AnswerRow]) -> dict[str, Any]:
    wrong = [row for row in rows[SHEET_LENGTH:] if not row.is_correct]
    return {
        "task": task,
        "num_rows": len(rows),
        "shown": rows[:SHEET_LENGTH],
        "wrong": wrong[:MAX_WRONG],
        "num_wrong": len(wrong),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _data_uri(image: bytes) -> str:
    for signature, kind in _SIGNATURES.items():
        if image.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(image).decode()}"
    raise DataError(
        f"an image of an answer starts with {image[:8]!r}, which is neither PNG nor JPEG. "
        "Convert it before the report."
    )

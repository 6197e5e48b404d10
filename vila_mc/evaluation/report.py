"""One self-contained HTML page: loss curves, accuracy against chance, answers, facts of a run."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from matplotlib import rc_context
from matplotlib.figure import Figure

from vila_mc.errors import DataError
from vila_mc.evaluation.scores import by_task, score
from vila_mc.files import write_whole

SHEET_LENGTH = 48
"""Answers shown per task, in the order given."""
MAX_WRONG = 200
"""Further wrong answers shown per task, behind a fold."""
MAX_POINTS = 1500
"""Points of a curve; longer ones are thinned."""

_TEXT_COLOUR = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
_CURVES = (
    ("loss", "loss", "#2f7fd0"),
    ("validation_loss", "loss", "#2a9d5f"),
    ("learning_rate", "learning rate", "#d0782f"),
)
"""Key of the record, label of the axis, colour; those of one label share a panel."""
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
    """Write the page; it appears whole or not at all, and loads nothing from elsewhere.

    Args:
        output: the HTML file; missing directories are made.
        title: heading of the page.
        curves: phase name -> records with ``step`` and any of ``loss``, ``validation_loss``,
            ``learning_rate``.
        answers: rows of any number of tasks.
        facts: name -> value, shown as they are (layout, versions, time).

    Raises:
        DataError: an image of an answer is neither PNG nor JPEG.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vila_mc.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "data_uri": _data_uri}
    page = environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        phases=[_phase(name, records) for name, records in curves.items()],
        scores=score(answers),
        sheets=[_sheet(task, rows) for task, rows in by_task(answers).items()],
    )
    write_whole(output, page)


def _sheet(task: str, rows: Sequence[AnswerRow]) -> dict[str, Any]:
    wrong = [row for row in rows[SHEET_LENGTH:] if not row.is_correct]
    return {
        "task": task,
        "num_rows": len(rows),
        "shown": rows[:SHEET_LENGTH],
        "wrong": wrong[:MAX_WRONG],
        "num_wrong": len(wrong),
    }


def _phase(name: str, records: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    losses = [loss for record in records if (loss := record.get("loss")) is not None]
    return {
        "name": name,
        "num_steps": len(losses),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "figure": _draw(name, records) if _curves_of(records) else None,
    }


def _curves_of(
    records: Sequence[Mapping[str, float]],
) -> list[tuple[str, str, str, list[tuple[float, float]]]]:
    """Key, label, colour and points of each curve that has any."""
    return [
        (key, label, colour, points)
        for key, label, colour in _CURVES
        if (points := [(r["step"], v) for r in records if (v := r.get(key)) is not None])
    ]


def _draw(name: str, records: Sequence[Mapping[str, float]]) -> markupsafe.Markup:
    """The curves of one phase as inline SVG in the page's own text colour.

    No text of the caller enters the figure: matplotlib would read a ``$`` in it as mathematics.
    """
    curves = _curves_of(records)
    labels = list(dict.fromkeys(label for _, label, _, _ in curves))
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # distinct ids for the figures of one page, the same every time
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
            _TEXT_COLOUR,
        ),
    }
    with rc_context(style):
        figure = Figure(figsize=(5.0 * len(labels), 2.6), layout="constrained")
        panels = dict(zip(labels, figure.subplots(1, len(labels), squeeze=False)[0], strict=True))
        for key, label, colour, points in curves:
            _draw_curve(panels[label], points, colour, is_noisy=key == "loss")
            if key == "validation_loss":
                panels[label].plot([], [], color=colour, label="validation")
                panels[label].legend(frameon=False)
            panels[label].set(xlabel="step", ylabel=label)
            panels[label].spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    return markupsafe.Markup(svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor"))


def _draw_curve(
    axes: Any, points: Sequence[tuple[float, float]], colour: str, *, is_noisy: bool
) -> None:
    """A curve; a long noisy one is drawn faintly, with its running mean over it."""
    every = -(-len(points) // MAX_POINTS)
    steps, values = zip(*points[::every], strict=True)
    window = len(values) // 40
    if window < 3 or not is_noisy:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="." if len(steps) < 3 else "")
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.4)
    axes.plot(steps, _running_mean(values, window), color=colour, linewidth=1.6)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to ``window - 1`` before it, leaving out what is not finite."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [value for value in values[max(0, end - window) : end] if isfinite(value)]
        means.append(sum(recent) / len(recent) if recent else float("nan"))
    return means


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

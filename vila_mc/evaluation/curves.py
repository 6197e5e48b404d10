"""Curves of training runs as inline SVG: one panel for each figure, all runs in it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import isfinite
from typing import Any

import markupsafe
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from vila_mc.evaluation.marks import Mark, draw_marks, marks_of, with_tooltips
from vila_mc.observe.thinned import Record, bound, num_steps, thin

MAX_POINTS = 600
"""Points of a curve; those of a longer one stand for several steps each."""
COLOURS = ("#2f7fd0", "#d0782f", "#2a9d5f", "#8e63c7", "#c74b6b", "#8a7a2f", "#3aa7a7", "#7f7f7f")
"""Of runs, in their order; they are told apart from each other on light and on dark pages."""
_TEXT_COLOUR = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
_SMOOTHED = 40
"""A noisy curve has a running mean over it, of this part of its points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A figure that is drawn over the course of runs."""

    name: str
    """For people, as an axis has it."""
    value: Callable[[Record], float | None] = lambda record: None
    """Of a step; of one that stands for several, their mean."""
    banded: str = ""
    """The figure's name in records that keep its least and greatest."""
    validation: str = ""
    """The figure of validations that is drawn beside it."""
    is_logarithmic: bool = False
    dataset: str = ""
    """Name of the one that it is measured on."""


def _figure(name: str, record: Record) -> float | None:
    value: float | None = record.get(name)
    return value


def _of_a_step(name: str, record: Record) -> float | None:
    value = record.get(name)
    return None if value is None else value / num_steps(record)


def _rate(name: str, record: Record) -> float | None:
    count, time = record.get(name), record.get("step_ms")
    return None if count is None or not time else 1000 * count / time


PANELS = (
    Panel(
        name="loss",
        value=partial(_figure, "loss"),
        banded="loss",
        validation="validation_loss",
    ),
    Panel(
        name="gradient norm",
        value=partial(_figure, "grad_norm"),
        banded="grad_norm",
        is_logarithmic=True,
    ),
    Panel(name="learning rate", value=partial(_figure, "learning_rate")),
    Panel(name="samples/s", value=partial(_rate, "samples")),
    Panel(name="trained tokens/s", value=partial(_rate, "trained_tokens")),
    Panel(name="tokens/s a rank", value=partial(_figure, "tokens_per_second_per_rank")),
    Panel(name="images/s", value=partial(_figure, "images_per_second")),
    Panel(name="TFLOP/s a rank", value=partial(_figure, "tflops_per_rank")),
    Panel(name="MFU", value=partial(_figure, "mfu")),
    Panel(name="ms a step", value=partial(_of_a_step, "step_ms")),
    Panel(name="ms of waiting for data", value=partial(_of_a_step, "data_ms")),
    Panel(name="peak memory, GiB", value=partial(_figure, "peak_memory_gib")),
)


_BY_DATASET = "validation_loss_by_entry."
_MOST_DATASETS = 8


def panels_of(runs: Sequence["Course"]) -> list[Panel]:
    """Every panel that runs may have: where there are several datasets to validate on, one each."""
    figures = dict.fromkeys(name for run in runs for one in run.validations for name in one)
    datasets = [
        Panel(name="validation loss", validation=name, dataset=name.removeprefix(_BY_DATASET))
        for name in figures
        if name.startswith(_BY_DATASET)
    ]
    return [*PANELS, *(datasets[:_MOST_DATASETS] if len(datasets) > 1 else [])]


def named_datasets(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """The same with the figures of datasets under the names of these, not their numbers.

    Args:
        records: of validations among others.
        names: of the datasets that validations measure on, in their order.
    """
    new = {f"{_BY_DATASET}{number}": f"{_BY_DATASET}{name}" for number, name in enumerate(names)}
    return [{new.get(name, name): value for name, value in one.items()} for one in records]


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs across a panel."""

    name: str
    """In ids and classes of the page."""
    label: str
    counted: str = ""
    """The figure of steps that is added up; without one, steps are counted."""


AXES = (
    Axis("steps", "steps"),
    Axis("samples", "samples", "samples"),
    Axis("tokens", "trained tokens", "trained_tokens"),
)


@dataclass(frozen=True, slots=True)
class Course:
    """A run, as its curves need it."""

    steps: Sequence[Record]
    validations: Sequence[Record]
    events: Sequence[Record] = ()

    @staticmethod
    def of(records: Sequence[Record], events: Sequence[Record] = ()) -> "Course":
        """A run from the records of its steps and validations, and its alarms."""
        steps = [record for record in records if "validation_loss" not in record]
        validations = [record for record in records if "validation_loss" in record]
        return Course(thin(steps, MAX_POINTS), thin(validations, MAX_POINTS), events)

    def has(self, axis: Axis) -> bool:
        """Whether there is anything to run along."""
        return not axis.counted or any(step.get(axis.counted) for step in self.steps)

    def along(self, axis: Axis) -> Mapping[int, float]:
        """Where each step is; validations are after a step."""
        if not axis.counted:
            return {record["step"]: record["step"] for record in (*self.steps, *self.validations)}
        counts = accumulate(step.get(axis.counted) or 0 for step in self.steps)
        there = dict(zip((step["step"] for step in self.steps), counts, strict=True))
        passed = 0.0
        for step in sorted({*there, *(record["step"] for record in self.validations)}):
            passed = there.setdefault(step, passed)
        return there


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one curve."""

    across: list[float]
    up: list[float]
    low: list[float]
    """Least of the steps that a point stands for; empty where it is not known."""
    high: list[float]
    colour: str
    is_validation: bool = False


def lines_of(panel: Panel, axis: Axis, runs: Sequence[Course]) -> list[Line]:
    """The curves of a panel: of each run that has the figure."""
    lines = []
    for number, run in enumerate(runs):
        colour, along = COLOURS[number % len(COLOURS)], run.along(axis)
        drawn = [(step, value) for step in run.steps if (value := panel.value(step)) is not None]
        if drawn:
            across = [along[step["step"]] for step, _ in drawn]
            low, high = _band(panel, [step for step, _ in drawn])
            lines.append(Line(across, [value for _, value in drawn], low, high, colour))
        measured = [
            (along[record["step"]], value)
            for record in run.validations
            if panel.validation and (value := record.get(panel.validation)) is not None
        ]
        if measured:
            across, up = (list(values) for values in zip(*measured, strict=True))
            lines.append(Line(across, up, [], [], colour, is_validation=True))
    return lines


def _band(panel: Panel, steps: Sequence[Record]) -> tuple[list[float], list[float]]:
    if not panel.banded or all(num_steps(step) == 1 for step in steps):
        return [], []
    low, high = (
        [value if (value := bound(s, panel.banded, which)) is not None else 0.0 for s in steps]
        for which in ("least", "greatest")
    )
    return low, high


def alarms_of(panel: Panel, axis: Axis, runs: Sequence[Course]) -> list[Mark]:
    """The alarms of runs that a panel shows, by run."""
    return [
        mark
        for number, run in enumerate(runs)
        for mark in marks_of(
            run.events, panel.name, run.along(axis), COLOURS[number % len(COLOURS)]
        )
    ]


def draw(
    panel: Panel, axis: Axis, lines: Sequence[Line], marks: Sequence[Mark], name: str
) -> markupsafe.Markup:
    """A panel as inline SVG in the page's own text colour.

    No text of a user enters the picture: matplotlib would read a ``$`` in it as mathematics.

    Args:
        panel: its figure.
        axis: what runs across.
        lines: its curves; at least one.
        marks: its alarms.
        name: of the picture, unlike those of all others of the page.
    """
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # distinct ids for the pictures of one page, the same every time
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
            _TEXT_COLOUR,
        ),
    }
    with rc_context(style):
        figure = Figure(figsize=(3.9, 2.5))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.2, right=0.97, top=0.95, bottom=0.2)
        for number, line in enumerate(lines):
            _draw_line(axes, line, f"{name}-{number}", is_noisy=bool(panel.banded))
        draw_marks(axes, marks, name)
        _explain(axes, lines, has_marks=bool(marks))
        if panel.is_logarithmic and all(value > 0 for line in lines for value in line.up):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set(xlabel=axis.label, ylabel=panel.name)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")
    return markupsafe.Markup(with_tooltips(svg, marks, name))


def _explain(axes: Any, lines: Sequence[Line], *, has_marks: bool) -> None:
    """A legend, where there is more to tell apart than runs."""
    kinds: dict[str, dict[str, str]] = {}
    if len({line.is_validation for line in lines}) > 1:
        kinds |= {"training": {}, "validation": dict(linestyle="--", marker=".")}
    if has_marks:
        kinds["alarm"] = dict(linestyle="", marker="v")
    for label, kind in kinds.items():
        axes.plot([], [], color=_TEXT_COLOUR, label=label, **kind)
    if kinds:
        axes.legend(frameon=False)


def _draw_line(axes: Any, line: Line, name: str, *, is_noisy: bool) -> None:
    """A curve; a long noisy one is drawn faintly, with its running mean over it."""
    if line.low:
        axes.fill_between(line.across, line.low, line.high, color=line.colour, alpha=0.2, lw=0)
    if line.is_validation:
        kind = dict(linestyle="--", marker=".")
    else:
        kind = dict(marker="." if len(line.up) < 3 else "")
    window = len(line.up) // _SMOOTHED
    if window < 3 or not is_noisy or line.is_validation:
        axes.plot(line.across, line.up, color=line.colour, linewidth=1.6, gid=name, **kind)
        return
    axes.plot(line.across, line.up, color=line.colour, linewidth=0.7, alpha=0.4)
    means = running_mean(line.up, window)
    axes.plot(line.across, means, color=line.colour, linewidth=1.6, gid=name)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to ``window - 1`` before it, leaving out what is not finite."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [value for value in values[max(0, end - window) : end] if isfinite(value)]
        means.append(sum(recent) / len(recent) if recent else float("nan"))
    return means

"""Alarms over curves: where they stand, what they say, and that their text stays text."""

from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from vila_mc.evaluation.curves import (
    AXES,
    COLOURS,
    PANELS,
    Course,
    Panel,
    alarms_of,
    draw,
    lines_of,
)
from vila_mc.evaluation.marks import PANEL_OF
from vila_mc.observe.record import EventKind

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>x</script> $\\frac{1$ #010203 &"
STEPS = [{"step": n, "loss": 4.0 / n, "samples": 8, "step_ms": 100.0} for n in range(1, 101)]


def _event(step: int, kind: str = "loss", message: str = "high") -> dict[str, Any]:
    return {"step": step, "event": kind, "message": message}


def _panel(name: str) -> Panel:
    return next(panel for panel in PANELS if panel.name == name)


def test_every_kind_of_alarm_has_a_panel() -> None:
    assert set(PANEL_OF) == set(get_args(EventKind))
    assert set(PANEL_OF.values()) <= {panel.name for panel in PANELS}


@pytest.mark.parametrize(
    ("events", "panel", "expected"),
    [
        pytest.param([], "loss", [], id="none"),
        pytest.param(
            [_event(40), _event(9, "slowdown", "slow")],
            "loss",
            [(320, "loss after step 40: high")],
            id="of this panel alone",
        ),
        pytest.param(
            [_event(40), _event(20, "bad_step", "no")],
            "loss",
            [(160, "bad_step after step 20: no"), (320, "loss after step 40: high")],
            id="in the order of steps",
        ),
        pytest.param(
            [_event(40, message="one"), _event(41), _event(50)],
            "loss",
            [
                (320, "2 alarms, the first: loss after step 40: one"),
                (400, "loss after step 50: high"),
            ],
            id="close ones are one",
        ),
        pytest.param([_event(900)], "loss", [(800, "loss after step 900: high")], id="beyond"),
        pytest.param([_event(5, "of another version")], "loss", [], id="unknown"),
    ],
)
def test_where_alarms_stand(
    events: list[dict[str, Any]], panel: str, expected: list[tuple[float, str]]
) -> None:
    run = Course(STEPS, [], events)
    marks = alarms_of(_panel(panel), AXES[1], [Course(STEPS, []), run])
    assert [(mark.across, mark.said) for mark in marks] == expected
    assert {mark.colour for mark in marks} <= {COLOURS[1]}


def test_a_mark_says_its_alarm_and_a_legend_what_it_is() -> None:
    run = Course(STEPS, [], [_event(40, message=HOSTILE), _event(80)])
    panel, axis = _panel("loss"), AXES[0]
    marks, lines = alarms_of(panel, axis, [run]), lines_of(panel, axis, [run])
    picture = ElementTree.fromstring(draw(panel, axis, lines, marks, "one"))
    titles = [
        group.findtext(f"{SVG}title")
        for group in picture.iter(f"{SVG}g")
        if group.get("class") == "alarm"
    ]
    assert titles == [f"loss after step 40: {HOSTILE}", "loss after step 80: high"]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts.count("alarm") == 1
    without = ElementTree.fromstring(draw(panel, axis, lines, [], "one"))
    assert "alarm" not in [text.text for text in without.iter(f"{SVG}text")]

"""Alarms of runs as marks over the curves that they concern, each with what it says."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import markupsafe

from vila_mc.observe.record import EventKind
from vila_mc.observe.thinned import Record

PANEL_OF: Mapping[EventKind, str] = {
    "loss": "loss",
    "bad_step": "loss",
    "substitutes": "loss",
    "grad_norm": "gradient norm",
    "slowdown": "ms a step",
    "straggler": "ms a step",
    "data_wait": "ms of waiting for data",
}
"""The panel that shows the alarms of a kind."""
_MOST_BESIDE = 60
"""Marks of one run that have room beside each other; closer alarms are one."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One alarm, or several of one run that lie together."""

    across: float
    colour: str
    said: str


def marks_of(
    events: Iterable[Record], panel: str, along: Mapping[int, float], colour: str
) -> list[Mark]:
    """The alarms of a run that belong over a panel.

    Args:
        events: each with ``step``, ``event`` and ``message``.
        panel: its name.
        along: where each step is; an alarm of one that is not there is at the next.
        colour: of the run.
    """
    steps = sorted(along)
    mine = sorted(
        (event for event in events if PANEL_OF.get(event["event"]) == panel),
        key=lambda event: int(event["step"]),
    )
    if not steps or not mine:
        return []
    places = [
        along[steps[min(bisect_left(steps, event["step"]), len(steps) - 1)]] for event in mine
    ]
    beside = (along[steps[-1]] - along[steps[0]]) / _MOST_BESIDE
    together: list[tuple[float, list[Record]]] = []
    for place, event in zip(places, mine, strict=True):
        if not together or place > together[-1][0] + beside:
            together.append((place, []))
        together[-1][1].append(event)
    return [Mark(place, colour, _said(those)) for place, those in together]


def _said(events: Sequence[Record]) -> str:
    first = events[0]
    message = f"{first['event']} after step {first['step']:,}: {first['message']}"
    return message if len(events) == 1 else f"{len(events):,} alarms, the first: {message}"


def draw_marks(axes: Any, marks: Sequence[Mark], name: str) -> None:
    """Put marks on the upper edge of a panel.

    Args:
        axes: matplotlib's.
        marks: in order.
        name: of the picture.
    """
    for number, mark in enumerate(marks):
        axes.plot(
            [mark.across],
            [1.0],
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            color=mark.colour,
            marker="v",
            markersize=7,
            linestyle="",
            gid=_id(name, number),
        )


def with_tooltips(svg: str, marks: Sequence[Mark], name: str) -> str:
    """The drawn picture, in which every mark says its alarm to who points at it.

    The texts get in here, not through matplotlib, which would read a ``$`` as mathematics.
    """
    for number, mark in enumerate(marks):
        said = markupsafe.escape(mark.said)
        opening = f'<g id="{_id(name, number)}"'
        spoken = f'{opening} class="alarm" role="img"><title>{said}</title>'
        svg = svg.replace(f"{opening}>", spoken)
    return svg


def _id(name: str, number: int) -> str:
    return f"alarm-{name}-{number}"

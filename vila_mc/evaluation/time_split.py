"""Where the time of a run's steps went, from the times of their parts in its records."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.observe.thinned import Record

PARTS = (
    ("data_ms", "waiting for data", "#8a7a2f"),
    ("vision_ms", "vision forward", "#8e63c7"),
    ("forward_ms", "language forward", "#2f7fd0"),
    ("backward_ms", "backward", "#d0782f"),
    ("pipeline_ms", "waiting for stages", "#7f7f7f"),
    ("reduction_ms", "gradient reduction", "#c74b6b"),
    ("optimizer_ms", "optimizer", "#2a9d5f"),
    ("other_ms", "other", "#3aa7a7"),
    ("save_ms", "saving, beside steps", "#5b6675"),
)
"""Figure, name for people, colour."""


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Of one run."""

    run: str
    shares: tuple[float, ...]
    """Of each of ``PARTS``, from 0 to 1; together 1."""


def time_split(run: str, records: Sequence[Record]) -> TimeSplit | None:
    """How the time of a run divides; None if its records do not say.

    Args:
        run: its name.
        records: of its steps, in which times are sums where a record stands for several.
    """
    times = [sum(max(0.0, one.get(figure) or 0.0) for one in records) for figure, _, _ in PARTS]
    whole = sum(times)
    return TimeSplit(run, tuple(one / whole for one in times)) if whole else None

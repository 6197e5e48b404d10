"""Records of a run, however many, in bounded memory: neighbours are put together, sums kept."""

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]

MOST_KEPT = 4096
"""Records are put together when there are twice as many."""
_SUMMED = frozenset(
    {
        "samples",
        "trained_tokens",
        "images",
        "substitutes",
        "skipped",
        "validation_tokens",
        "positions",
        "flops",
    }
)
"""Counts of a step, beside times in milliseconds; other figures are averaged."""
_BANDED = ("loss", "grad_norm")
"""Figures of which the least and the greatest are kept, too: peaks are what one looks for."""
_MOST_NAMED = 9
RESERVED = frozenset({"num_steps", "skipped_steps", "least", "greatest"})
"""Names that a record has only where it stands for several."""


def num_steps(record: Record) -> int:
    """How many steps (or validations) a record stands for."""
    return int(record.get("num_steps", 1))


def skipped_steps(record: Record) -> list[int]:
    """The first steps of a record that changed no weight."""
    if "skipped_steps" in record:
        return list(record["skipped_steps"])
    return [record["step"]] if record.get("skipped") else []


def together(records: Sequence[Record]) -> Record:
    """One record that stands for several.

    ``step`` is the last, ``num_steps`` their number; counts and times are sums, peaks the greatest,
    other figures means over the steps that have them. ``least`` and ``greatest`` hold the bounds of
    loss and gradient norm, ``skipped_steps`` the first steps without an update.
    """
    if len(records) == 1:
        return records[0]
    names = dict.fromkeys(name for record in records for name in record)
    whole: Record = {
        name: _figure(name, records) for name in names if name not in RESERVED | {"step"}
    }
    whole["step"] = records[-1]["step"]
    whole["num_steps"] = sum(map(num_steps, records))
    whole["skipped_steps"] = [n for record in records for n in skipped_steps(record)][:_MOST_NAMED]
    for name, choose in (("least", min), ("greatest", max)):
        whole[name] = {
            figure: choose(values)
            for figure in _BANDED
            if (values := [v for r in records if (v := bound(r, figure, name)) is not None])
        }
    return whole


def bound(record: Record, figure: str, which: str) -> float | None:
    """The least or greatest (``which``) of a figure among the steps of a record."""
    value: float | None = record.get(which, record).get(figure)
    return value


def _figure(name: str, records: Sequence[Record]) -> float | None:
    known = [(v, num_steps(r)) for r in records if isinstance(v := r.get(name), (int, float))]
    if not known:
        return None
    if name in _SUMMED or name.endswith("_ms"):
        return sum(value for value, _ in known)
    if "peak" in name:
        return float(max(value for value, _ in known))
    return sum(value * steps for value, steps in known) / sum(steps for _, steps in known)


def thin(records: Sequence[Record], most: int) -> list[Record]:
    """The same in ``most`` records at most, each of as many neighbours."""
    every = max(1, -(-len(records) // most))
    return [together(records[at : at + every]) for at in range(0, len(records), every)]


class Thinned:
    """Records in the order of their steps, of which neighbours are put together as they grow many.

    Args:
        most: records that are kept; twice as many for a while.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._every = 1
        self._whole: list[Record] = []
        self._open: list[Record] = []

    def add(self, record: Record) -> None:
        """Take the next one."""
        self._open.append(record)
        if len(self._open) < self._every:
            return
        self._whole.append(together(self._open))
        self._open = []
        if len(self._whole) == 2 * self._most:
            self._whole = thin(self._whole, self._most)
            self._every *= 2

    def drop_from(self, step: int) -> None:
        """Forget what is of ``step`` or later, and what it was put together with."""
        for records in (self._open, self._whole):
            while records and records[-1]["step"] >= step:
                records.pop()

    def records(self) -> list[Record]:
        """All of them."""
        return self._whole + ([together(self._open)] if self._open else [])


def all_steps(records: Iterable[Record]) -> int:
    """How many steps records stand for."""
    return sum(map(num_steps, records))

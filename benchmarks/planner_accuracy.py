"""How far the planner's predictions lie from published measurements, worst first.

Constants are fitted to half of the runs, chosen by a seed; what counts is the other half. A run is
a job on a kind of GPU, so that two figures of one run never stand on both sides.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from claims import Claim, parser, report
from planner_fit import fit
from published_jobs import published
from published_rows import (
    PUBLISHED,
    BrokenRowError,
    NotModelledError,
    Published,
    Row,
    kind_of_row,
    memory_of,
    rows,
    seconds_of,
    value_of,
)

from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.planner.constants import FITTED, Constants

SEED = 20261128
MOST_UNMODELLED = 0.25
"""Share of the dense and vision rows that may be left out."""
MEDIAN, NINETIETH, MEMORY_MEDIAN = 0.10, 0.25, 0.08


@dataclass(frozen=True, slots=True)
class Checked:
    """A row beside what is foretold of it."""

    one: Published
    foretold: float
    is_fitted: bool
    """Whether the constants have seen its run."""

    def ratio(self) -> float:
        """Foretold over measured, of throughput or of memory."""
        ratio = self.foretold / float(self.one.row["value"])
        return 1 / ratio if self.one.row["metric"] == "step_s" else ratio

    def error(self) -> float:
        """How far off, as a share of what was measured."""
        return abs(self.ratio() - 1)

    def is_memory(self) -> bool:
        """Whether it is about memory."""
        return self.one.row["metric"] == "mem_gb"


def split(found: Sequence[Published]) -> set[object]:
    """The runs that constants are fitted to."""
    runs = list(dict.fromkeys(one.run() for one in found))
    random.Random(SEED).shuffle(runs)
    return set(runs[: len(runs) // 2])


def check(found: Sequence[Published], constants: Constants) -> list[Checked]:
    """Foretell every row, worst first."""
    fitted = split(found)
    known: dict[object, float] = {}
    checked = []
    for one in found:
        run = one.run()
        if run not in known:
            known[run] = seconds_of(one, constants)
        value = value_of(one, known[run], memory_of(one, constants))
        checked.append(Checked(one, value, run in fitted))
    return sorted(checked, key=Checked.error, reverse=True)


class LeftOut(NamedTuple):
    """A row that is not foretold."""

    number: int
    """Of the file's rows, from 1."""
    row: Row
    reason: str
    is_meant: bool
    """Whether the planner claims to know its kind, or it cannot be told."""


def read(file: Path) -> tuple[list[Published], list[LeftOut]]:
    """Rows as jobs, and those that cannot be, with the reason."""
    found, left = [], []
    for number, row in enumerate(rows(file), 1):
        try:
            found.append(published(row))
        except BrokenRowError as reason:
            left.append(LeftOut(number, row, str(reason), is_meant=True))
        except NotModelledError as reason:
            is_meant = kind_of_row(row) in ("dense", "vision", "long")
            left.append(LeftOut(number, row, str(reason), is_meant))
    return found, left


def quantile(errors: Sequence[float], share: float) -> float:
    """The error that ``share`` of the rows do not exceed."""
    return sorted(errors)[min(len(errors) - 1, int(share * len(errors)))]


def print_rows(checked: Sequence[Checked]) -> None:
    """Every row, worst first."""
    for one in checked:
        row = one.one.row
        words = (
            f"{one.ratio():5.2f}",
            "fitted" if one.is_fitted else "      ",
            row["metric"],
            row["value"],
            row["hardware"],
            row["precision"],
            row["model"],
            f"gpus {row['gpus']} tp {row['tp']} pp {row['pp']} cp {row['cp']} seq {row['seq']}",
            row["source"][:48],
        )
        say("  ".join(words))


def print_groups(title: str, checked: Sequence[Checked], key: str) -> None:
    """Errors by source or kind."""
    groups: dict[str, list[float]] = {}
    for one in checked:
        name = one.one.kind if key == "kind" else one.one.row["source"][:70]
        groups.setdefault(f"{name}{', memory' if one.is_memory() else ''}", []).append(one.error())
    print(f"\n| {title} | rows | median | 90th percentile |\n|---|---|---|---|")
    for name, errors in sorted(groups.items(), key=lambda item: -quantile(item[1], 0.5)):
        median, ninetieth = quantile(errors, 0.5), quantile(errors, 0.9)
        say(f"| {name} | {len(errors)} | {median:.1%} | {ninetieth:.1%} |")


def print_left_out(left: Sequence[LeftOut]) -> None:
    """What is not modelled, row by row and by reason."""
    if left:
        print("\nNot modelled:")
    for number, row, reason, _ in left:
        model = row.get("model") or ""
        say(f"row {number}  {model[:48]}  {reason}")
    print("\n| not modelled | rows |\n|---|---|")
    for reason, count in Counter(one.reason for one in left).most_common():
        say(f"| {reason} | {count} |")


def claims(checked: Sequence[Checked], constants: Constants, unmodelled: float) -> list[Claim]:
    """What the planner promises, of rows that constants have not seen."""
    unseen = [one for one in checked if not one.is_fitted] or list(checked)
    times = [one for one in unseen if not one.is_memory()]
    memory = [one.error() for one in checked if one.is_memory()]
    low, high = constants.band
    made = []
    if times:
        errors = [one.error() for one in times]
        inside = [low <= one.ratio() <= high for one in times]
        made = [
            Claim(
                "throughput, median error of unseen runs",
                quantile(errors, 0.5),
                "",
                MEDIAN,
                "lower",
            ),
            Claim("throughput, 90th percentile", quantile(errors, 0.9), "", NINETIETH, "lower"),
            Claim(f"rows within the band {low:.2f} to {high:.2f}", sum(inside) / len(inside), ""),
        ]
    if memory:
        made.append(
            Claim("memory, median error", quantile(memory, 0.5), "", MEMORY_MEDIAN, "lower")
        )
    made.append(
        Claim("dense and vision rows not modelled", unmodelled, "", MOST_UNMODELLED, "lower")
    )
    return made


def print_constants(constants: Constants) -> None:
    """The constants, to be written down."""
    for one in fields(constants):
        print(f"{one.name}: {getattr(constants, one.name)}")


def main() -> int:
    """Check the rows of a file; with --fit, find constants first."""
    made = parser(__doc__)
    made.add_argument("--rows", type=Path, default=PUBLISHED, metavar="FILE", help="a CSV file")
    made.add_argument("--fit", action="store_true", help="find the constants anew and print them")
    arguments = made.parse_args()
    found, left = read(arguments.rows)
    constants = FITTED
    if arguments.fit:
        seen = split(found)
        times = [one for one in found if one.row["metric"] != "mem_gb" and one.run() in seen]
        if not times:
            raise ConfigError(f"{arguments.rows} has no row of time to fit constants to.")
        constants = fit(times)
        print_constants(constants)
    checked = check(found, constants)
    print_rows(checked)
    print_groups("source", checked, "source")
    print_groups("kind", checked, "kind")
    print_left_out(left)
    meant = sum(one.is_meant for one in left)
    unmodelled = meant / max(1, meant + len(found))
    print()
    report(claims(checked, constants, unmodelled), arguments)
    return int(unmodelled > MOST_UNMODELLED)


if __name__ == "__main__":
    run_cli(main)

"""What every benchmark shares: a claim, its table, and its JSON.

A benchmark measures, makes a list of ``Claim`` and ends with ``report``. Ratios come from runs that
alternate in one process or pair by pair, so that a machine whose speed drifts does not decide them.
"""

import json
import os
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a benchmark's table."""

    claim: str
    """What was measured."""
    value: float
    unit: str
    target: float | None = None
    """What it should be; None for figures that are only reported."""
    better: Literal["higher", "lower"] = "higher"
    how: str = ""
    """How it was measured, for someone who wants to repeat it."""

    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def parser(description: str | None) -> ArgumentParser:
    """A command line with ``--json``, to which a benchmark adds its own options."""
    made = ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the claims there as well")
    return made


def report(claims: Sequence[Claim], arguments: Namespace) -> int:
    """Print the table, write the JSON; returns 0, also where a target is missed."""
    rows = [("claim", "measured", "target", "holds")]
    for claim in claims:
        sign = ">=" if claim.better == "higher" else "<="
        target = "" if claim.target is None else f"{sign} {claim.target:g}"
        holds = {True: "yes", False: "NO", None: ""}[claim.holds()]
        rows.append((claim.claim, f"{claim.value:,.4g} {claim.unit}".strip(), target, holds))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")
    if arguments.json is not None:
        values = [
            {name: value for name, value in asdict(claim).items() if name != "better"}
            | {"holds": claim.holds()}
            for claim in claims
        ]
        partial = arguments.json.with_name(f".{arguments.json.name}.partial")
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, arguments.json)
    return 0


def paired_seconds(
    functions: Sequence[Callable[[], object]], *, rounds: int = 7, warmup: int = 1
) -> list[list[float]]:
    """Seconds of each function in each round; in every round all run once, in turn.

    Args:
        functions: what to time.
        rounds: rounds that count.
        warmup: rounds before them.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(warmup + rounds):
        for function, measured in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            if turn >= warmup:
                measured.append(time.perf_counter() - started)
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))

"""How the planner's constants are found: one at a time, by how far predictions are off.

The loss is the mean of the logarithms' differences, each at most ``MOST``: a row that says
something else than its authors meant must not draw the constants, which stay within what is
physical.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from published_rows import Published, seconds_of, value_of

from vila_mc.planner.constants import FITTED, Constants

MOST = 0.6
"""Of a row's difference, in units of e: as much as a factor of 1.8."""
ROUNDS = 10
LIMITS = {
    "product": 0.9,
    "attention": 0.7,
    "memory": 0.9,
    "link": 0.9,
    "network": 0.9,
    "tensor_hidden": 0.95,
    "data_hidden": 0.95,
    "kernel": 1e-5,
}
"""No share of a peak is greater."""
FIXED = {("software", "megatron"), ("software", "vila_mc")}
"""The unit of the others, and what only this project's own figures can say."""


START = replace(
    FITTED,
    product={name: 0.7 if name.endswith("bf16") else 0.55 for name in FITTED.product},
    attention=dict.fromkeys(FITTED.attention, 0.45),
    software=dict.fromkeys(FITTED.software, 1.0),
    memory=0.8,
    kernel=5e-6,
    launch=5e-4,
    link=0.75,
    tensor_hidden=0.6,
    network=0.7,
    data_hidden=0.5,
    latency=1e-5,
    step=0.02,
)
"""Round guesses, from which every fit begins: it must not start from what all rows have taught."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One constant: a field, or one entry of it."""

    field: str
    entry: str | None

    def of(self, constants: Constants) -> float:
        """Its value."""
        value = getattr(constants, self.field)
        return float(value if self.entry is None else value[self.entry])

    def turned(self, constants: Constants, value: float) -> Constants:
        """The constants with another value of it."""
        new: Any = value
        if self.entry is not None:
            new = {**getattr(constants, self.field), self.entry: value}
        return replace(constants, **{self.field: new})


def knobs(constants: Constants) -> list[Knob]:
    """Every constant of time that is fitted."""
    found = []
    for name in ("product", "attention", "software"):
        found += [Knob(name, entry) for entry in getattr(constants, name)]
    single = ("memory", "kernel", "launch", "link", "tensor_hidden", "network", "data_hidden")
    found += [Knob(name, None) for name in (*single, "latency", "step")]
    return [knob for knob in found if (knob.field, knob.entry) not in FIXED]


def differences(constants: Constants, rows: Sequence[Published]) -> list[float]:
    """Logarithms of foretold over measured throughput."""
    known: dict[Any, float] = {}
    found = []
    for one in rows:
        run = one.run()
        if run not in known:
            known[run] = seconds_of(one, constants)
        ratio = value_of(one, known[run], 0.0) / float(one.row["value"])
        found.append(-math.log(ratio) if one.row["metric"] == "step_s" else math.log(ratio))
    return found


def loss(constants: Constants, rows: Sequence[Published]) -> float:
    """What is made small."""
    found = [min(abs(one), MOST) for one in differences(constants, rows)]
    return sum(found) / len(found)


def fit(rows: Sequence[Published]) -> Constants:
    """Turn every constant up and down, by less and less, for as long as it helps."""
    constants = START
    steps = dict.fromkeys(knobs(constants), 0.15)
    best = loss(constants, rows)
    for turn in range(ROUNDS):
        for knob in steps:
            for sign in (1, -1):
                value = knob.of(constants) * (1 + sign * steps[knob])
                if value > LIMITS.get(knob.field, math.inf):
                    continue
                tried = knob.turned(constants, value)
                found = loss(tried, rows)
                if found < best - 1e-5:
                    best, constants = found, tried
                    steps[knob] *= 1.2
                    break
            else:
                steps[knob] *= 0.5
        print(f"round {turn + 1}: {best:.4f}", flush=True)
    return constants

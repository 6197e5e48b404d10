"""What the planner says of the paper's own runs, as one more table. Nobody trains anything for it.

Its arms are phases of published runs; ``benchmarks/planner_vila.py`` has their conditions.
"""

import sys
from collections.abc import Mapping
from typing import Any

from declared import RESOURCES
from steps import CHECKOUT
from verdicts import Interval, verdict

TITLE = "What the paper's runs take"
_ALL = "VILA-7B, all phases"
_WITHIN = 20.0
"""Per cent that a foretold time may be off and still agree."""


def resources(facts: Mapping[str, str]) -> dict[str, Any]:
    """The table, in the form of ``page.result_of``: GPU-hours, as published and as foretold."""
    sys.path.insert(0, str(CHECKOUT / "benchmarks"))
    from planner_vila import CLIP, PADDING, PHASES, hours, job_of

    from vila_mc.topology.hardware import GPUS

    foretold = {
        phase.name: hours(phase, job_of(phase, CLIP, PADDING), GPUS[phase.gpu]) for phase in PHASES
    }
    published = {phase.name: phase.hours for phase in PHASES}
    of_vila = [name for name in foretold if name.startswith("VILA-7B")]
    for table in (foretold, published):
        table[_ALL] = sum(table[name] for name in of_vila)
    return {
        "name": RESOURCES,
        "title": TITLE,
        "source": "arXiv 2312.07533, section 4; the README of LLaVA-1.5",
        "asks": "Does the planner foretell what the published runs took?",
        "note": "Nothing was trained for it. No row had a part in the planner's fit.",
        "facts": dict(facts),
        "measures": [
            {"name": "foretold", "unit": "GPU-hours", "paper": "GPU-hours", "chance": None}
        ],
        "arms": [
            {"name": name, "figures": [_cell(value, published[name])]}
            for name, value in foretold.items()
        ],
        "claims": [
            _claim(name, foretold[name], published[name])
            for name in sorted(published, key=lambda name: name != _ALL)
        ],
    }


def _cell(value: float, published: float) -> dict[str, Any]:
    return {
        "seeds": [round(value, 1)],
        "mean": round(value, 1),
        "spread": 0.0,
        "questions": 0,
        "paper": round(published),
    }


def _claim(name: str, foretold: float, published: float) -> dict[str, Any]:
    off = round(100 * (foretold / published - 1), 1)
    return {
        "says": f"{name} took {published:,.0f} GPU-hours.",
        "compared": f"{name}: foretold against published, in per cent",
        "low": off,
        "high": off,
        "verdict": verdict(Interval(off, 0.0), "close", _WITHIN),
    }

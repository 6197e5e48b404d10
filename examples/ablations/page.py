"""``ablations.html``: every table that was run in one folder, on one self-contained page."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from declared import Claim, Table
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from verdicts import Figure, difference, interval_of, verdict

from vila_mc.files import write_json, write_whole
from vila_mc.table import aligned

PAGE = "ablations.html"
_TEXT_COLOUR = "#010203"
"""Stands for the page's text colour while matplotlib draws."""

type Figures = Mapping[str, Mapping[str, Sequence[Figure]]]
"""Arm -> measure -> what each seed scored."""


def result_of(
    name: str, table: Table, figures: Figures, facts: Mapping[str, str]
) -> dict[str, Any]:
    """All that is said of a table, as plain values: what ``tables/NAME.json`` holds.

    Args:
        name: of the table.
        table: as declared.
        figures: what was measured.
        facts: about the whole, for people.
    """
    return {
        "name": name,
        "title": table.title,
        "source": table.source,
        "asks": table.asks,
        "note": table.note,
        "facts": dict(facts),
        "measures": [
            {"name": one.name, "unit": table.unit(one), "paper": one.paper}
            for one in table.measures
        ],
        "arms": [
            {
                "name": arm.name,
                "figures": [
                    _cell(figures[arm.name][one.name]) | {"paper": arm.paper.get(one.name)}
                    for one in table.measures
                ],
            }
            for arm in table.arms
        ],
        "claims": [_judged(claim, figures) for claim in table.claims],
    }


def _cell(seeds: Sequence[Figure]) -> dict[str, Any]:
    found = interval_of(seeds)
    return {
        "seeds": [round(figure.value, 4) for figure in seeds],
        "mean": round(found.mean, 4),
        "spread": round(found.spread, 4),
        "questions": seeds[0].questions,
    }


def _judged(claim: Claim, figures: Figures) -> dict[str, Any]:
    found = difference(figures[claim.of][claim.measure], figures[claim.than][claim.measure])
    return {
        "says": claim.says,
        "compared": f"{claim.measure}: {claim.of} against {claim.than}",
        "low": round(found.low, 3),
        "high": round(found.high, 3),
        "verdict": verdict(found, claim.relation, claim.within),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """A table's result for the terminal."""
    heads = [f"{one['name']}, {one['unit']}" for one in result["measures"]]
    papers = [f"paper: {one['paper']}" if one["paper"] else "" for one in result["measures"]]
    has_paper = [
        any(arm["figures"][i]["paper"] is not None for arm in result["arms"])
        for i in range(len(heads))
    ]
    rows = [["arm"]]
    for head, paper, shown in zip(heads, papers, has_paper, strict=True):
        rows[0] += [head, *([paper] if shown else [])]
    for arm in result["arms"]:
        row = [arm["name"]]
        for cell, shown in zip(arm["figures"], has_paper, strict=True):
            row.append(f"{cell['mean']:.2f} ± {cell['spread']:.2f}")
            if shown:
                row.append("" if cell["paper"] is None else f"{cell['paper']:g}")
        rows.append(row)
    said = [
        f"{one['verdict']} ({one['low']:+.2f} to {one['high']:+.2f}): {one['says']} "
        f"[{one['compared']}]"
        for one in result["claims"]
    ]
    return [result["title"], *aligned(rows), *said]


def write_result(output: Path, result: Mapping[str, Any]) -> Path:
    """Keep a table's result and write the page of all there are; returns the page's path."""
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{result['name']}.json", result)
    results = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    ]
    for each in results:
        each["pictures"] = [_picture(each, index) for index in range(len(each["measures"]))]
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_whole(output / PAGE, made.from_string(template).render(results=results))
    return output / PAGE


def _picture(result: Mapping[str, Any], index: int) -> markupsafe.Markup:
    """One measure of all arms as inline SVG: a point for each seed, and the interval."""
    measure = result["measures"][index]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{result['name']}-{index}",
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
            _TEXT_COLOUR,
        ),
    }
    arms = result["arms"]
    with rc_context(style):
        picture = Picture(figsize=(5.2, 0.8 + 0.34 * len(arms)), layout="constrained")
        axes = picture.subplots()
        for place, arm in enumerate(arms):
            cell = arm["figures"][index]
            axes.errorbar(
                cell["mean"], place, xerr=cell["spread"], fmt="o", color="#2f7fd0", capsize=3
            )
            seeds = cell["seeds"]
            axes.plot(seeds, [place] * len(seeds), "|", color="#d0782f", markersize=9)
        axes.set_yticks(range(len(arms)), [arm["name"].replace("$", r"\$") for arm in arms])
        axes.invert_yaxis()
        axes.margins(y=0.15)
        axes.set_xlabel(f"{measure['name']}, {measure['unit']}")
        axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        picture.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    return markupsafe.Markup(svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor"))

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
_OF_THE_PAPER: dict[str, Any] = {
    "markerfacecolor": "none",
    "markeredgecolor": _TEXT_COLOUR,
    "markersize": 4.5,
    "zorder": 3,
}
_GREY = "#6b7280"
"""Text of a picture by itself: it can be read on light and on dark pages."""

type Figures = Mapping[str, Mapping[str, Sequence[Figure]]]
"""Arm -> measure -> what each seed scored."""


def result_of(
    name: str,
    table: Table,
    figures: Figures,
    chances: Mapping[str, float | None],
    facts: Mapping[str, str],
    runs: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """All that is said of a table, as plain values: what ``tables/NAME.json`` holds.

    Args:
        name: of the table.
        table: as declared.
        figures: what was measured.
        chances: measure -> what answers that do not look get; None where that says nothing.
        facts: about the whole, for people.
        runs: arm -> where each seed's model is, to talk to it.
    """
    return {
        "name": name,
        "title": table.title,
        "source": table.source,
        "asks": table.asks,
        "note": table.note,
        "facts": dict(facts),
        "measures": [
            {
                "name": one.name,
                "unit": table.unit(one),
                "paper": one.paper,
                "chance": chances[one.name],
            }
            for one in table.measures
        ],
        "arms": [
            {
                "name": arm.name,
                "runs": list(runs[arm.name]),
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
            row.append(_with_spread(cell))
            if shown:
                row.append("" if cell["paper"] is None else f"{cell['paper']:g}")
        rows.append(row)
    if any(one["chance"] is not None for one in result["measures"]):
        row = ["(chance)"]
        for one, shown in zip(result["measures"], has_paper, strict=True):
            row += [
                "" if one["chance"] is None else f"{one['chance']:.2f}",
                *([""] if shown else []),
            ]
        rows.append(row)
    said = [
        f"{one['verdict']} ({one['low']:+.2f} to {one['high']:+.2f}): {one['says']} "
        f"[{one['compared']}]"
        for one in result["claims"]
    ]
    return [result["title"], *aligned(rows), *said]


def _with_spread(cell: Mapping[str, Any]) -> str:
    return f"{cell['mean']:,.2f}" + (f" ± {cell['spread']:.2f}" if cell["spread"] else "")


def write_result(output: Path, result: Mapping[str, Any]) -> Path:
    """Keep a table's result and its picture, and write the page of all there are; returns its path.

    ``output/tables`` then holds ``NAME.json`` and ``NAME.svg``.
    """
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{result['name']}.json", result)
    write_whole(folder / f"{result['name']}.svg", _picture(result).replace(_TEXT_COLOUR, _GREY))
    files = sorted(folder.glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for each in results:
        drawn = _picture(each).replace(_TEXT_COLOUR, "currentColor")
        each["picture"] = markupsafe.Markup(drawn[drawn.index("<svg") :])
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_whole(
        output / PAGE, made.from_string(template).render(results=results, with_spread=_with_spread)
    )
    return output / PAGE


def _picture(result: Mapping[str, Any]) -> str:
    """A panel for each measure as SVG: in each a mean and its interval for every arm, its seeds,
    and the paper's figure."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": result["name"],
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
            _TEXT_COLOUR,
        ),
    }
    arms, measures = result["arms"], result["measures"]
    with rc_context(style):
        size = (2.0 + 2.3 * len(measures), 1.1 + 0.34 * len(arms))
        picture = Picture(figsize=size, layout="constrained")
        panels = picture.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for index, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
            for place, arm in enumerate(arms):
                cell = arm["figures"][index]
                mean, spread, seeds = cell["mean"], cell["spread"], cell["seeds"]
                axes.errorbar(
                    mean, place, xerr=spread, fmt="o", color="#2f7fd0", capsize=3, label="mean"
                )
                if len(seeds) > 1:
                    row = [place] * len(seeds)
                    axes.plot(seeds, row, "|", color="#d0782f", markersize=9, label="seeds")
                if cell["paper"] is not None:
                    axes.plot(cell["paper"], place, "D", label="paper", **_OF_THE_PAPER)
            if measure["chance"] is not None:
                line: dict[str, Any] = {"color": _TEXT_COLOUR, "linestyle": ":", "linewidth": 1}
                axes.axvline(measure["chance"], label="chance", **line)
            if measure["unit"] == "GPU-hours":
                axes.set_xscale("log")
            axes.margins(y=0.15)
            axes.set_xlabel(f"{measure['name']}, {measure['unit']}")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_yticks(range(len(arms)), [arm["name"] for arm in arms], parse_math=False)
        panels[0].invert_yaxis()
        drawn_as = [zip(*axes.get_legend_handles_labels()[::-1], strict=True) for axes in panels]
        labels = dict(pair for pairs in drawn_as for pair in pairs)  # each once
        names = [name for name in ("mean", "seeds", "chance", "paper") if name in labels]
        handles = [labels[name] for name in names]
        picture.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False)
        drawn = io.StringIO()
        picture.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()

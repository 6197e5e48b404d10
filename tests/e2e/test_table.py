"""A table of ablations from its declaration to the page, on a world of a few countries."""

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ablations"))

import declared
import run
from atlas.build import index, write_questions, write_world
from atlas.questions import tasks
from atlas.world import read_world

from tests.support.atlas_packages import TINY, rasterize, write_packages

FEW = {"options": {"train.steps": 2}}
LEFT_OUT = dict.fromkeys(("letters", "sight", "instruct", "align", "pretrain"))
TABLE = {
    "title": "A table",
    "source": "none",
    "asks": "Does a language model learn from questions?",
    "arms": [
        {"name": "text alone", "phases": {**LEFT_OUT, "base": FEW, "sft": None}},
        {"name": "and questions", "phases": {**LEFT_OUT, "base": FEW, "sft": FEW}},
    ],
    "measures": [
        {"name": "text", "questions": ["text_capital"]},
        {"name": "text loss", "loss": "text"},
    ],
    "claims": [
        {
            "says": "Two steps teach little.",
            "measure": "text",
            "of": "and questions",
            "than": "text alone",
            "relation": "close",
            "within": 100.0,
        }
    ],
}


@pytest.mark.slow
def test_a_table_is_trained_measured_judged_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = write_packages(tmp_path / "packages")
    world = read_world(packages, TINY, 1)
    made = tmp_path / "world"
    made.mkdir()
    pictures = write_world(world, TINY, made, packages, rasterize)
    write_questions(list(tasks(world, pictures)), made / "questions")
    index(made, vocabulary=400)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "small.yaml").write_text(yaml.safe_dump(TABLE))
    monkeypatch.setattr(declared, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(run, "_world", lambda output, *, is_small: made)
    output = tmp_path / "out"
    assert run.repeat(run.AblationOptions(table="small", output=output, seeds=1)) == 0

    result = json.loads((output / "tables" / "small.json").read_text())
    figures = {arm["name"]: arm["figures"] for arm in result["arms"]}
    assert figures["text alone"][1]["mean"] != figures["and questions"][1]["mean"]
    assert all(0 < loss["mean"] < 20 for _, loss in figures.values())
    assert [claim["verdict"] for claim in result["claims"]] == ["agrees"]
    assert (output / result["arms"][1]["runs"][0]).is_dir()
    assert "Two steps teach little." in (output / "ablations.html").read_text()
    capsys.readouterr()
    assert run.repeat(run.AblationOptions(table="small", output=output, seeds=1)) == 0
    assert "6 of 6 steps were done before" in capsys.readouterr().out

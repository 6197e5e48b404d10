"""``vila-mc report``, of runs in every state."""

import json
from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest, checkpoint_name
from vila_mc.commands.report import main
from vila_mc.errors import DataError
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.topology.layout import Layout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three steps with one validation and a checkpoint, and a name that is no markup."""
    folder = tmp_path / "<b>run"
    directory = folder / checkpoint_name(2)
    directory.mkdir(parents=True)
    layout = Layout(tensor=2, pipeline=1, data=1)
    Manifest(
        step=2,
        samples_seen=16,
        config=tiny_run(),
        layout=layout,
        versions={"torch": "2.14.1", "transformer-engine": "2.20.2"},
        layers={"language": "torch"},
    ).write(directory)
    records = [
        {"step": n, "loss": 4.0 / n, "learning_rate": 1e-3, "samples": 8, "step_ms": 100.0}
        for n in (1, 2, 3)
    ]
    records.append({"step": 3, "validation_loss": 2.5, "validation_ms": 50.0})
    (folder / METRICS_NAME).write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


def test_a_run_is_summed_up_and_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["steps", "3,", "the", "last", "is", "3"]
    assert "validation loss  2.5000 after step 3, the best 2.5000 after step 3" in lines
    assert "checkpoint       step-00000002 of 5 steps" in lines
    assert "layout           tensor 2 x pipeline 1 x data 1, micro-batch 1" in lines
    assert "computed in      fp32, no FP8; layers: language torch" in lines
    assert "written by       torch 2.14.1, transformer-engine 2.20.2" in lines
    assert lines[-1] == f"wrote {run / 'report.html'}"
    page = (run / "report.html").read_text()
    assert "pretrain: &lt;b&gt;run" in page
    assert page.count("<svg") == 1
    assert ">validation</text>" in page


def test_a_damaged_checkpoint_is_a_fact_of_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / checkpoint_name(2) / MANIFEST_NAME).write_text("{")
    output = tmp_path / "elsewhere" / "page.html"
    assert main([str(run / METRICS_NAME), "--output", str(output)]) == 0
    assert "manifest.json cannot be read" in capsys.readouterr().out
    assert output.is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", [METRICS_NAME, "chat.jsonl"])
def test_what_is_no_page_is_not_replaced(name: str, run: Path) -> None:
    (run / "chat.jsonl").write_text("{}")
    before = (run / name).read_bytes()
    with pytest.raises(DataError, match=f"{name}, which is there and is no .html"):
        main([str(run), "--output", str(run / name)])
    assert (run / name).read_bytes() == before


@pytest.mark.parametrize(
    "value", ["1e308", "-1e308", "1e39", "1" + "0" * 400, "1" + "0" * 30, "true", "NaN"]
)
@pytest.mark.parametrize(
    "name", ["step", "loss", "validation_loss", "learning_rate", "samples", "step_ms"]
)
def test_any_figure_is_survived(name: str, value: str, run: Path) -> None:
    with (run / METRICS_NAME).open("a") as metrics:
        for step in (4, 5, 6):
            line = {"step": step, "loss": 1.0, "samples": 8, "step_ms": 100.0} | {name: "VALUE"}
            metrics.write(json.dumps(line).replace('"VALUE"', value) + "\n")
    assert main([str(run)]) == 0
    assert "<svg" in (run / "report.html").read_text()


def test_validations_alone_are_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / METRICS_NAME).read_text().splitlines(keepends=True)
    (run / METRICS_NAME).write_text(lines[-1])
    assert main([str(run)]) == 0
    assert "samples" not in capsys.readouterr().out
    assert "<svg" in (run / "report.html").read_text()

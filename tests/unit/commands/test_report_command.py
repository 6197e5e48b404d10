"""``vila-mc report``, of runs in every state."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest
from vila_mc.commands.report import main
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.curves import COLOURS
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
    assert page.count("<svg") == 2 * 4  # by steps and samples: loss, learning rate, two of speed
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


def _copy(run: Path, name: str) -> Path:
    """Another run of the same metrics."""
    other = run.parent / name
    other.mkdir(parents=True)
    shutil.copy(run / METRICS_NAME, other)
    return other


def test_runs_stand_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [_copy(run, "a/sft"), _copy(run, "b/sft")]
    assert main([str(run), *map(str, others)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{run.parent.name}/<b>run", "a/sft", "b/sft"]
    assert [line[:-1] for line in lines if line.endswith(":")] == names
    page = (run / "report.html").read_text()
    assert "<title>3 runs</title>" in page
    assert page.count("<svg") == 2 * 4
    assert page.count('id="curve-0-0-steps-') == 2 * 3  # each with its validation
    assert len({colour for colour in COLOURS if f"background: {colour}" in page}) == 3


def test_a_run_is_given_once_and_not_too_many(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="<b>run is given more than once"):
        main([str(run), str(run / METRICS_NAME)])
    with pytest.raises(ConfigError, match="9 runs are given; a page has room for 8"):
        main([str(run)] * 9)
    with pytest.raises(ConfigError, match="required: RUN"):
        main([])


def test_events_and_damaged_lines_are_facts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / METRICS_NAME).open("a") as metrics:
        for step in (1, 3, 3):
            metrics.write(json.dumps({"step": step, "event": "loss", "message": "high"}) + "\n")
        metrics.write("{damaged\n" + "7" * 2_000_000 + "\n" + '{"step": 3, "event": "str')
    assert main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "steps            3, the last is 3" in told
    assert "alarms           3 loss" in told
    assert "damaged          2 of the lines of its metrics are no record" in told


def test_accuracies_of_answers(run: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    row = {"id": 1, "task": "digit", "is_correct": True, "chance": None}
    answers.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'is_correct': None})}\n")
    assert main([str(run), "--answers", str(answers)]) == 0
    page = (run / "report.html").read_text()
    assert "1 of 1" in page
    assert "not known" in page


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no answer that is known to be right or wrong"),
        ('{"task": "a", "is_correct": null, "chance": null}\n', "holds no answer that is known"),
        ("{}\n", "line 1 of .*answers.jsonl is no answer. Give what evaluate wrote"),
        ('{"task": "a", "is_correct": 1, "chance": null}', "line 1 of .* is no answer"),
        ('{"task": "a", "is_correct": true, "chance": 2}', "line 1 of .* is no answer"),
        ("[" * 100_000, "line 1 of .* is no answer"),
        (None, "answers.jsonl does not exist"),
    ],
)
def test_what_is_no_file_of_answers_is_refused(
    content: str | None, told: str, run: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    if content is not None:
        answers.write_text(content)
    with pytest.raises(DataError, match=told) as refusal:
        main([str(run), "--answers", str(answers)])
    assert "\n" not in str(refusal.value)
    assert not (run / "report.html").exists()

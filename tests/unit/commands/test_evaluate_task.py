"""evaluate --task: asked, judged, written, and gone on with after a stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.askable import Askable
from tests.support.released_tasks import RELEASED
from vila_mc.commands import evaluate
from vila_mc.errors import ConfigError, DataError, run_cli
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.tasks import asking

Said = Callable[..., list[str]]


def options(model: Path, name: str, data: Path, output: Path, *more: str) -> list[str]:
    RELEASED[name](data)
    return [
        *("--checkpoint", str(model), "--task", name, "--data", str(data)),
        *("--output", str(output), "--batch", "2", "--max-new-tokens", "2", *more),
    ]


@pytest.mark.parametrize("name", ["pope", "mmbench", "coco", "mmvet", "scienceqa"])
def test_a_task_is_asked_and_judged(
    name: str,
    askable: Askable,
    said: Said,
    tmp_path: Path,
) -> None:
    output = tmp_path / "answers.jsonl"
    printed = said(evaluate.main, *options(askable.model(), name, tmp_path, output, "--limit", "1"))
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(answers) == 1
    assert set(answers[0]) >= {"question_id", "prompt", "text", "answer_id", "model_id"}
    if name == "mmvet":
        assert printed == [f"mmvet: 1 answers are in {output}, to be judged elsewhere"]
        return
    assert "judged as" in printed[0]
    assert printed[1].split()[0] in ("F1", "accuracy", "CIDEr")


def test_a_stopped_evaluation_goes_on(
    askable: Askable,
    said: Said,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    figures = said(evaluate.main, *options(askable.model(), "pope", tmp_path, whole))
    asked: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(arguments[2]))
        return generate(*arguments)

    monkeypatch.setattr(asking, "generate", interrupted)
    command = options(askable.model(), "pope", tmp_path, output)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: evaluate.main(command, "tool"))
    assert ended.value.code == 130
    kept = tmp_path / "answers.unfinished.jsonl"
    assert f"interrupted after 4 answers, which are in {kept}" in capsys.readouterr().err
    assert not output.exists()
    with kept.open("a") as file:
        file.write('{"id": "half')  # as a machine that dies leaves it

    other = [*command, "--seed", "2"]
    with pytest.raises(DataError, match="holds answers of another checkpoint, task or options"):
        evaluate.main(other, "tool")
    asked[:] = []
    printed = said(evaluate.main, *command)
    assert printed == [f"4 of 6 answers are in {kept}", *figures]
    assert asked == [2]
    assert output.read_text() == whole.read_text()
    assert not kept.exists()


@pytest.mark.parametrize("content", ["", "no json\n", "{}\n{}\n"])
def test_a_damaged_file_of_answers_is_refused(
    content: str,
    askable: Askable,
    tmp_path: Path,
) -> None:
    command = options(askable.model(), "gqa", tmp_path, tmp_path / "a.jsonl")
    (tmp_path / "a.unfinished.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"a\.unfinished\.jsonl .*Remove it"):
        evaluate.main(command, "tool")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--task", "gqa"],
        ["--data", "d", "--task", "gqa", "--questions", "q"],
        ["--questions", "q"],
        ["--questions", "q", "--images", "i", "--limit", "3"],
    ],
)
def test_a_task_or_questions_and_not_both(given: list[str], tmp_path: Path) -> None:
    how = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "a")]
    with pytest.raises(ConfigError, match="give either a public task"):
        evaluate.main([*how, *given], "tool")

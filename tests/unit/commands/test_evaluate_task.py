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
from vila_mc.evaluation.tasks.registry import TASKS

Said = Callable[..., list[str]]


def options(model: Path, name: str, data: Path, output: Path, *more: str) -> list[str]:
    RELEASED[name](data)
    return [
        *("--checkpoint", str(model), "--task", name, "--data", str(data)),
        *("--output", str(output), "--batch", "2", "--max-new-tokens", "2", *more),
    ]


@pytest.mark.parametrize(
    "name", ["pope", "mmbench", "coco", "mmvet", "scienceqa", "vizwiz_test", "vqav2_test"]
)
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
    if not TASKS[name].judges:
        assert printed == [f"{name}: 1 answers are in {output}, to be judged elsewhere"]
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
        ["--questions", "q", "--images", "i", "--task", "gqa"],
    ],
)
def test_a_task_or_questions_and_not_both(given: list[str], tmp_path: Path) -> None:
    how = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "a")]
    with pytest.raises(ConfigError, match="give either a public task"):
        evaluate.main([*how, *given], "tool")


def test_what_questions_have_not_is_named(tmp_path: Path) -> None:
    how = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "a")]
    with pytest.raises(ConfigError, match="--figures is given, but --questions counts exact"):
        evaluate.main([*how, "--questions", "q", "--images", "i", "--figures", "f"], "tool")


def own_options(model: Path, folder: Path, *more: str) -> list[str]:
    """A task of one's own: six lines to show, of which one has the picture that is asked about."""
    lines = [{"question": "what is one?", "answers": ["red"], "images": ["red.png"]}]
    for number, name in enumerate(("red", "blue", "blue", "blue", "blue", "blue")):
        told = {"question": f"what is {number}?", "answers": [name], "split": "train"}
        lines.append(told | {"images": [f"{name}.png"]})
    file = folder / "colours.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("--checkpoint", str(model), "--task", str(file), "--images", str(model.parent)),
        *("--output", str(folder / "answers.jsonl"), "--max-new-tokens", "2", *more),
    ]


@pytest.mark.parametrize("form", ["chat", "flamingo", "text", "interleaved"])
def test_demonstrations_are_shown_and_written_down(
    form: str, askable: Askable, said: Said, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    how = ("--shots", "2", "--demonstrations", "similar", "--form", form)
    more = ("--figures", str(figures))
    printed = said(evaluate.main, *own_options(askable.model(), tmp_path, *how, *more))
    assert printed[0] == f"colours, 2-shot, similar (seed 0), as {form}, judged as exact does:"
    (answer,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").open()]
    assert [one["images"] for one in answer["demonstrations"]] == [["blue.png"]] * 2
    assert answer["read"].count("<image>") == 3
    assert answer["read"].count("blue") == 2
    assert answer["prompt"] == "what is one?"
    kept = json.loads(figures.read_text())
    assert (kept["task"], kept["judge"], kept["shots"]["count"]) == ("colours", "exact", 2)
    assert kept["figures"][0]["count"] == 1
    assert f"{kept['figures'][0]['value']:.2f}" in printed[1]


def test_answers_of_other_shots_are_not_mixed(
    askable: Askable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(own_options(askable.model(), tmp_path, "--shots", "2"), "tool")
    for other in (
        ["--shots", "3"],
        ["--shots", "2", "--shots-seed", "1"],
        ["--shots", "2", "--demonstrations", "fixed"],
        ["--shots", "2", "--form", "flamingo"],
    ):
        with pytest.raises(DataError, match="holds answers of another checkpoint, task or options"):
            evaluate.main(own_options(askable.model(), tmp_path, *other), "tool")


def test_demonstrations_that_do_not_fit_are_said(
    askable: Askable, said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = own_options(askable.model(), tmp_path, "--shots", "5", "--max-new-tokens", "90")
    assert evaluate.main(given, "tool") == 0
    (answer,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").open()]
    number = len(answer["demonstrations"])
    assert 0 < number < 5
    assert answer["read"].count("<image>") == number + 1
    assert (
        f"1 of 1 prompts hold fewer than 5 demonstrations, {number} at the fewest: no more fit"
        in capsys.readouterr().err
    )
    with pytest.raises(
        ConfigError, match=r"question 1 of colours takes .* positions and its answer"
    ):
        evaluate.main(own_options(askable.model(), tmp_path, "--max-new-tokens", "199"), "tool")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--shots", "6"],
            "question 1 is to stand behind 6 demonstrations, and the training split",
        ),
        (["--demonstrations", "fixed"], "--demonstrations is given, but no demonstrations are"),
        (["--figures", "answers.jsonl", "--output", "answers.jsonl"], "figures is output"),
        (["--ocr"], "--ocr is given, but .* is no public task"),
        (["--judge", "vqa"], "question 1 has 1 answers, and vqa compares with those of 10"),
        (["--judge", "gqa"], "colours is not judged as gqa does. There is exact, words"),
    ],
)
def test_what_a_task_of_ones_own_has_not(
    given: list[str], message: str, askable: Askable, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate.main(own_options(askable.model(), tmp_path, *given), "tool")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("pope", ["--shots", "4"], "pope has no training split to take demonstrations from"),
        ("mmlu", ["--form", "chat"], "mmlu is asked as text alone"),
        ("mmlu", ["--form", "interleaved"], "mmlu is asked as text alone"),
        ("pope", ["--form", "text"], "pope is asked in the form chat or flamingo, not as text"),
        ("pope", ["--form", "flamingo"], "pope has no training split"),
        ("pope", ["--ocr"], "pope has no OCR tokens; textvqa has"),
        ("pope", ["--weigh", "texts"], "--weigh is given, but pope is a public task"),
        ("mme", ["--limit", "3"], r"limit is 3, and .* together \(count/0001\)\. Give 4\."),
        ("mmbench_test", ["--limit", "3"], r"limit is 3, and .* \(252\)\. Give 5\."),
        ("vizwiz_test", ["--figures", "f"], "vizwiz_test is judged elsewhere, so it has no fig"),
    ],
)
def test_what_a_public_task_has_not(
    name: str, given: list[str], message: str, tmp_path: Path
) -> None:
    command = options(tmp_path, name, tmp_path, tmp_path / "a.jsonl", *given)
    with pytest.raises(ConfigError, match=message):
        evaluate.main(command, "tool")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ranks", "2"], "--ranks is given, but --loss is measured in one process"),
        (["--tensor", "2"], "--tensor is given, but --loss is measured in one process"),
        (["--precision", "bf16"], "--loss is measured in fp32"),
        (["--shots", "4"], "--shots is given, but --loss asks for no answer"),
        (["--batch", "4"], "--batch is given, but --loss asks for no answer"),
        (["--seed", "4"], "--seed is given, but --loss asks for no answer"),
    ],
)
def test_a_loss_takes_no_options_of_answers(given: list[str], message: str, tmp_path: Path) -> None:
    how = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "a"), "--loss"]
    with pytest.raises(ConfigError, match=message):
        evaluate.main([*how, *given], "tool")


def test_a_limit_beyond_the_last_item_asks_all(
    askable: Askable, said: Said, tmp_path: Path
) -> None:
    output = tmp_path / "a.jsonl"
    said(evaluate.main, *options(askable.model(), "pope", tmp_path, output, "--limit", "99"))
    assert len(output.read_text().splitlines()) == 6


def test_ranks_make_whole_copies(tmp_path: Path) -> None:
    how = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "a"), "--task", "pope"]
    with pytest.raises(ConfigError, match=r"3 ranks do not divide .* on 2 each.*See --tensor"):
        evaluate.main([*how, "--data", str(tmp_path), "--ranks", "3", "--tensor", "2"], "tool")

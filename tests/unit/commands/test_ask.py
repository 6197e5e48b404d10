"""Asking as a person does: one question, a conversation, a file of questions; any kind of model."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.askable import BARE, KINDS, Askable, record_template
from vila_mc.commands import ask, evaluate
from vila_mc.errors import CheckpointError, DataError, VilaError, run_cli
from vila_mc.evaluation import questions
from vila_mc.evaluation.generate import generate


def test_a_question_is_answered_in_one_line(askable: Askable, said: Any) -> None:
    how = ("--checkpoint", askable.model(), "--max-new-tokens", 4)
    red, blue = ("--image", askable.image()), ("--image", askable.image("blue"))
    (one,) = said(ask.main, *how, *red, "what is <image> here")
    (other,) = said(ask.main, *how, *blue, "what is <image> here")
    (both,) = said(ask.main, *how, *red, *blue, "<image> what <image>")
    (front,) = said(ask.main, "what is here", *red, *how)
    (alone,) = said(ask.main, *how, "what is here")
    assert len({one, other, both, front, alone}) > 3  # or it would prove nothing


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_as_its_checkpoint(
    kind: str, askable: Askable, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--image", askable.image(), "--max-new-tokens", 6, "what is here")
    expected = said(ask.main, "--checkpoint", askable.model(), *asked)
    assert said(ask.main, "--checkpoint", askable.model(kind), *asked) == expected
    assert "template" not in capsys.readouterr().err


class Typed(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [io.StringIO, Typed])
def test_a_conversation_is_kept_until_it_starts_anew(
    stdin: type[io.StringIO],
    askable: Askable,
    said: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blue = askable.image("blue")
    lines = ["what is here", "", "why", "/new", "what is here", "/new", "why", f"/image {blue}"]
    monkeypatch.setattr("sys.stdin", stdin("\n".join([*lines, "why"])))
    how = ("--checkpoint", askable.model(), "--max-new-tokens", 4)
    printed = said(ask.main, *how, "--image", askable.image())
    answers = [line.lstrip("> ") for line in printed if line.strip("> ")]
    assert len(answers) == 5
    first, second, again, alone, another = answers
    assert again == first
    assert len({first, second, alone, another}) > 2
    (expected,) = said(ask.main, *how, "--image", askable.image(), "what is here")
    assert first == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "{red}", "<image> or <image>"], "2 <image> markers but 1 images"),
        (["--image", "{red}", "--image", "none.png", "what"], "there is no image none.png"),
        (["--image", "{folder}", "what"], "there is no image"),
        (["--image", "{folder}/t.model", "what"], "t.model"),
        (["word " * 200], "positions with this question, and the model has 200"),
        (["--template", "none.yaml", "what"], "there is no template none.yaml"),
        ([" "], "the question is empty"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    arguments: list[str], message: str, askable: Askable
) -> None:
    named = dict(red=askable.image(), folder=askable.folder)
    given = [argument.format(**named) for argument in arguments]
    with pytest.raises(VilaError) as caught:
        ask.main(["--checkpoint", str(askable.model()), *given], "tool")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image", "/image has no image. Give a file"),
        ("/images a.png", "/images is none of /image, /new and /quit. A line is a question"),
        ("/stop", "/stop is none of /image, /new and /quit"),
    ],
)
def test_a_misspelt_command_is_no_question(
    line: str, message: str, askable: Askable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    with pytest.raises(DataError, match=message):
        ask.main(["--checkpoint", str(askable.model())], "tool")


def test_a_mistake_ends_a_pipe_but_not_a_person(
    askable: Askable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--checkpoint", str(askable.model()), "--max-new-tokens", "2"]
    lines = "/image none.png\nwhat\n"
    monkeypatch.setattr("sys.stdin", Typed(lines))
    assert ask.main(how, "tool") == 0
    shown = capsys.readouterr()
    assert "error: there is no image none.png" in shown.err
    assert shown.out.count("\n") == 2  # the answer, and the end of the last prompt's line
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(DataError, match="there is no image"):
        ask.main(how, "tool")


def test_what_is_no_model_is_said(askable: Askable, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        ask.main(["--checkpoint", str(tmp_path), "what"], "tool")
    run = askable.model()
    there = f"in {run.parent}. There is one in .*{run.name}"
    with pytest.raises(CheckpointError, match=there):
        ask.main(["--checkpoint", str(run.parent), "what"], "tool")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="a whole model is one of"):
        ask.main(["--checkpoint", str(tmp_path), "what"], "tool")


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (None, [], "it is not recorded which chat template"),
        (BARE.describe(), ["--template", "vicuna_v1"], "the template vicuna_v1 is not the one"),
        ("plain", [], "a prompt of the images alone, so the words of a question are not put"),
    ],
)
def test_another_template_is_warned_of(
    template: Any,
    given: list[str],
    message: str,
    askable: Askable,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (checkpoint,) = askable.model().iterdir()
    record_template(checkpoint, template)
    try:
        how = ["--checkpoint", str(askable.model()), "--max-new-tokens", "1", *given]
        ask.main([*how, "--image", askable.image(), "what"], "tool")
    finally:
        record_template(checkpoint, BARE.describe())
    assert f"warning: {message}" in capsys.readouterr().err.replace("the template plain is ", "")


def _questions(askable: Askable, number: int, **more: object) -> Path:
    asked = dict(task="colour", images=["red.png"], question="what is here")
    path = askable.folder / "questions.jsonl"
    lines = [json.dumps(asked | {"id": str(at)} | more) for at in range(number)]
    path.write_text("\n".join(lines))
    return path


def _evaluated(askable: Askable, output: Path, model: Path | None = None) -> list[str]:
    return [
        *("--checkpoint", str(model or askable.model()), "--output", str(output)),
        *("--questions", str(askable.folder / "questions.jsonl")),
        *("--images", str(askable.folder), "--max-new-tokens", "2", "--batch", "2"),
    ]


@pytest.mark.parametrize("kind", ["run", "hf-vila"])
def test_questions_without_answers_are_answered(
    kind: str, askable: Askable, said: Any, tmp_path: Path
) -> None:
    path = _questions(askable, 3)
    with pytest.raises(DataError, match=r"--output is .*, which is also an input"):
        evaluate.main(_evaluated(askable, path), "tool")
    printed = said(evaluate.main, *_evaluated(askable, tmp_path / "a.jsonl", askable.model(kind)))
    assert printed == ["3 of 3 questions have no answer to compare with"]
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["0", "1", "2"]
    assert all(answer["expected"] is answer["is_correct"] is None for answer in answers)
    _questions(askable, 3, answer=answers[0]["answer"])
    printed = said(evaluate.main, *_evaluated(askable, tmp_path / "a.jsonl", askable.model(kind)))
    assert printed == ["colour: 100.0 % right (3 of 3)"]


def test_an_interrupt_keeps_the_answers_so_far(
    askable: Askable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = iter(range(9))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(questions, "generate", interrupted)
    _questions(askable, 7)
    output = tmp_path / "answers.jsonl"
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: evaluate.main(_evaluated(askable, output), "tool"))
    assert ended.value.code == 130
    kept = tmp_path / "answers.unfinished.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert len(kept.read_text().splitlines()) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"interrupted after 4 of 7 questions; their answers are in {kept}"


def test_an_interrupt_ends_a_conversation_in_one_line(
    askable: Askable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: ask.main(["--checkpoint", str(askable.model())], "tool"))
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"

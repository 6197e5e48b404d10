"""A conversation in the terminal: what a person types, drops and interrupts."""

import io
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.askable import Askable
from vila_mc.commands import ask, chat
from vila_mc.errors import SetupError, VilaError
from vila_mc.evaluation.answering import Answering

LENGTH = ("--max-new-tokens", "6")


class Typed(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, askable: Askable, said: Any) -> Any:
    """Answers to lines that a person types."""

    def run(*lines: str, options: Sequence[str] = LENGTH) -> list[str]:
        monkeypatch.setattr("sys.stdin", Typed("\n".join(lines)))
        printed = said(chat.main, askable.model(), *options)
        return [line.lstrip("> ") for line in printed if line.strip("> ")]

    return run


@pytest.mark.parametrize("how", ["/image {}", "/image '{}'", "{}", "'{}'", "file://{}", "two"])
def test_images_are_named_or_dropped(
    how: str, askable: Askable, typed: Any, said: Any, tmp_path: Path
) -> None:
    spaced = tmp_path / "my red.png"
    spaced.write_bytes(Path(askable.image()).read_bytes())
    red, blue = askable.image(), askable.image("blue")
    asked = ["--checkpoint", askable.model(), "--image", red, *LENGTH]
    if how == "two":
        (expected,) = said(ask.main, *asked, "--image", blue, "what is here")
        assert typed(f"{red} {blue}", "what is here") == [expected]
        return
    (expected,) = said(ask.main, *asked, "what is here")
    if how == "file://{}":
        spaced = Path(str(spaced).replace(" ", "%20"))
    elif how == "{}":
        spaced = Path(str(spaced).replace(" ", "\\ "))
    assert typed(how.format(spaced), "what is here") == [expected]


def test_an_image_that_spoils_its_question_spoils_no_other(
    typed: Any,
    askable: Askable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    (alone,) = typed("what is here")
    lines = (f"/image {broken}", "what is here", "what is here")
    monkeypatch.setattr("sys.stdin", Typed("\n".join(lines)))
    chat.main([str(askable.model()), *LENGTH], "tool")
    told = capsys.readouterr()
    assert alone in told.out
    assert "images of the next question: 1" in told.err
    assert "its images are forgotten: name them again" in told.err


def test_quit_ends_and_new_forgets(typed: Any) -> None:
    first, second, again = typed("what is here", "why", "/new", "what is here", "/quit", "why")
    assert again == first
    assert second != first


def test_ctrl_c_ends_an_answer_and_not_the_program(
    typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said until then stands before the next question."""
    first, after_it = typed("what is here", "why")
    step, calls = Answering.step, iter(range(99))

    def interrupted(self: Answering) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Answering, "step", interrupted)
    cut, after_cut = typed("what is here", "why")
    assert first.startswith(cut)
    assert len(cut) < len(first)
    assert after_cut != after_it
    monkeypatch.setattr(Answering, "step", step)
    (alone,) = typed("why")
    assert after_cut != alone


def test_words_come_one_after_the_other(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("vila_mc.commands.conversing.say", lambda text, **_: shown.append(text))
    typed("what is here")
    assert len([words for words in shown if words]) > 3  # the help is one


def test_beams_are_shown_at_the_end(typed: Any, askable: Askable, said: Any) -> None:
    beams = (*LENGTH, "--beams", "3")
    expected = said(ask.main, "--checkpoint", askable.model(), *beams, "what is here")
    assert typed("what is here", options=beams) == expected


def test_it_is_served_until_ctrl_c(
    askable: Askable, said: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model stays in the main thread, which Ctrl-C reaches."""
    (expected,) = said(ask.main, "--checkpoint", askable.model(), *LENGTH, "what is here")
    answers: list[Any] = []

    def client(line: str) -> None:
        url = line.split()[4].rstrip(",")
        body = {"messages": [{"role": "user", "content": "what is here"}], "model": "run"}
        try:
            reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            answers.append(reply.json()["choices"][0]["message"]["content"])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def announced(line: str, **_: Any) -> None:
        if " is served at " in line:
            threading.Thread(target=client, args=(line,)).start()

    monkeypatch.setattr(chat, "say", announced)
    (step,) = askable.model().iterdir()
    with pytest.raises(KeyboardInterrupt):
        chat.main([str(step), *LENGTH, "--serve", "0"], "tool")
    assert answers == [expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--serve", "0", "--image", "{red}"], "--image is given, but every request brings"),
        (["--serve", "0", "--beams", "2"], "--beams is given, but served words"),
        (["--serve", "here"], r"--serve is here; give \[HOST:\]PORT"),
        (["--name", "it"], "--name is given, but nothing is served"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, askable: Askable
) -> None:
    given = [option.format(red=askable.image()) for option in options]
    with pytest.raises(VilaError, match=message):
        chat.main([str(askable.model()), *given], "tool")


def test_without_the_packages_it_says_what_to_install(
    askable: Askable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'vila_mc\[serve\]'"):
        chat.main([str(askable.model()), "--serve", "0"], "tool")

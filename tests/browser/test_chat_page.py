"""The page of the server in a real browser: an image is dropped, asked about and answered."""

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.askable import make_askable
from tests.support.browser import PHONE, opened_at
from tests.support.launching import wait_until
from tests.support.served import MODEL, Served, served
from vila_mc.evaluation.answering import Answering
from vila_mc.evaluation.conversation import Conversation

DROP = """([name, kind, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: kind }));
  const how = { dataTransfer: carried, bubbles: true, cancelable: true };
  document.querySelector("main").dispatchEvent(new DragEvent("drop", how));
}"""
SHOWN = "#talk article.assistant:not(.coming)"
FIGURES = f"{SHOWN} .figures"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(make_askable(tmp_path_factory.mktemp("page"), kinds=())) as running:
        yield running


def drop(page: Any, file: Path, kind: str = "image/png") -> None:
    content = base64.b64encode(file.read_bytes()).decode()
    page.page.evaluate(DROP, [file.name, kind, content])


def words(page: Any) -> list[str]:
    return page.page.locator(f"{SHOWN} > p:first-of-type").all_inner_texts()


def asked(server: Served, *questions: str) -> list[str]:
    """What is answered in a conversation that begins with the red picture."""
    conversation = Conversation(server.asked, 12)
    images: list[Path] = [Path(server.askable.image())]
    answers = []
    for question in questions:
        answers.append(conversation.ask(question, images).text)
        images = []
    return answers


def test_an_image_is_dropped_and_talked_about(browser: Any, server: Served) -> None:
    with opened_at(browser, server.url) as page:
        wait_until(lambda: page.page.title().startswith(MODEL), "the model's name")
        assert page.focused() == "Your question"
        drop(page, Path(server.askable.image()))
        page.page.wait_for_selector("#images img")
        page.page.fill("#tokens", "12")
        for number, question in enumerate(("what is here", "why"), start=1):
            page.page.fill("#question", question)
            page.page.press("#question", "Enter")
            wait_until(lambda: page.count(FIGURES) == number, "the answer")  # noqa: B023 - now
        assert words(page) == asked(server, "what is here", "why")
        assert page.count("article.user img") == 1
        assert page.count("#images img") == 0
        (first, _) = page.texts(FIGURES)
        assert first.startswith("12 tokens · ")
        assert " tokens/s · first after " in first
        assert first.endswith("cut: it would have gone on")
        page.page.click("#new")
        assert page.count("article") == 0
        assert page.page.locator("#empty").is_visible()
        page.page.fill("#question", "why")
        page.page.press("#question", "Enter")
        page.page.wait_for_selector(FIGURES)
        (alone,) = words(page)
        assert alone == Conversation(server.asked, 12).ask("why").text
        assert page.said == []
        assert {address.removeprefix(server.url) for address in page.asked} == {
            *("/page.css", "/page.js", "/v1/models", "/v1/chat/completions")
        }


def test_mistakes_are_said_and_what_is_said_stays_text(
    browser: Any, server: Served, tmp_path: Path
) -> None:
    hostile = tmp_path / "x<img src=y onerror=alert(1)>"
    hostile.write_bytes(b"no image")
    with opened_at(browser, server.url) as page:
        drop(page, hostile, "text/plain")
        page.page.wait_for_selector("article.wrong")
        drop(page, hostile)
        page.page.wait_for_selector("#images img")
        page.page.fill("#question", "<script>alert(2)</script>")
        page.page.press("#question", "Enter")
        page.page.wait_for_selector("article.assistant.wrong:not(.coming)")
        assert page.texts("article.wrong")[0] == f"{hostile.name} is no image."
        assert page.texts("article.wrong")[1].startswith("image 1 of the request is not an image")
        assert page.texts("article.user p") == ["<script>alert(2)</script>"]
        assert page.count("article script, article img[onerror]") == 0
        # The question that failed is no part of the conversation.
        page.page.fill("#question", "why")
        page.page.press("#question", "Enter")
        page.page.wait_for_selector(FIGURES)
        assert [line for line in page.said if "400" not in line] == []


def test_the_keyboard_is_enough(
    browser: Any, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls, stopped = Answering.step, iter(range(999)), threading.Event()

    def slow(answering: Answering) -> Any:
        if next(calls) == 5:
            assert stopped.wait(60)
        return step(answering)

    with opened_at(browser, server.url) as page:
        drop(page, Path(server.askable.image()))
        page.page.wait_for_selector("#images img")
        page.tab_to("files")
        page.tab_to("temperature")
        page.tab_to("send")
        for name in ("Remove image 1", "Your question"):
            page.tab_to(name)
        page.page.keyboard.type("what is")
        page.page.keyboard.press("Shift+Enter")
        page.page.keyboard.type("here")
        monkeypatch.setattr(Answering, "step", slow)
        page.page.keyboard.press("Enter")
        wait_until(lambda: page.texts(".coming p") not in ([], [""]), "the first words")
        page.page.keyboard.press("Escape")
        page.page.wait_for_selector(FIGURES)
        assert page.texts(FIGURES) == ["stopped"]
        stopped.set()
        wait_until(lambda: server.engine.open == 0, "the end of the answer")
        assert next(calls) < 20  # of 256 tokens
        assert page.page.locator("article.user p").inner_text() == "what is\nhere"
        assert page.focused() == "Your question"


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_page_is_readable(width: int, colours: str, browser: Any, server: Served) -> None:
    with opened_at(browser, server.url, width, colours) as page:
        wait_until(lambda: page.page.title().startswith(MODEL), "the model's name")
        drop(page, Path(server.askable.image()))
        page.page.fill("#question", "a" * 100)
        page.page.press("#question", "Enter")
        page.page.wait_for_selector("article.assistant:not(.coming)")
        assert page.overflow() <= 0
        assert page.smallest_text() >= 12
        assert page.said == []

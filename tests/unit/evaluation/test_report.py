"""The HTML report: what it says, that it is self-contained, and that text stays text."""

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from vila_mc.errors import DataError
from vila_mc.evaluation.curves import MAX_POINTS
from vila_mc.evaluation.report import (
    SHEET_LENGTH,
    AnswerRow,
    write_report,
)
from vila_mc.evaluation.scores import TaskScore, score

HOSTILE = (
    "</p><script>alert('x')</script> \"quoted\" & $\\frac{1$ {{ 7 * 7 }} <img src=x onerror=y>"
)


def picture(kind: str = "PNG") -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (4, 4), 128).save(encoded, format=kind)
    return encoded.getvalue()


def row(**changes: Any) -> AnswerRow:
    values: dict[str, Any] = {
        "task": "which_digit",
        "question": "Which digit is this?",
        "images": (picture(),),
        "answer": "3",
        "expected": "3",
        "is_correct": True,
        "chance": 0.1,
    }
    return AnswerRow(**(values | changes))


def curve(length: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 4 * 0.99**step, "learning_rate": 1e-3 / (step + 1), "each": [1.0]}
        for step in range(length)
    ]


def render(tmp_path: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A run",
        "curves": {"align": curve(5)},
        "answers": [row()],
        "facts": {"layout": "tensor 2"},
    }
    output = tmp_path / "report.html"
    write_report(output, **(arguments | changes))
    return output.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    outline = Outline(render(tmp_path, answers=[row(), row(is_correct=False)]))
    assert outline.open == []
    names = {name for name, _ in outline.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "base"})
    for name, attributes in outline.tags:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key) or "#"
            assert target.startswith(("data:image/", "#")), (name, target)
    assert not re.search(r"url\((?!#)|@import", render(tmp_path))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = render(
        tmp_path,
        title=HOSTILE,
        curves={HOSTILE: curve(3)},
        answers=[row(task=HOSTILE, question=HOSTILE, answer=HOSTILE, expected=HOSTILE)],
        facts={HOSTILE: HOSTILE},
    )
    outline = Outline(page)
    assert outline.open == []
    assert "script" not in {name for name, _ in outline.tags}
    assert not any("onerror" in attributes for _, attributes in outline.tags)
    assert "{{ 7 * 7 }}" in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 7


def test_accuracy_stands_beside_chance_with_counts(tmp_path: Path) -> None:
    answers = [row(is_correct=index < 3) for index in range(4)]
    page = " ".join(render(tmp_path, answers=answers).split())
    assert "3 of 4" in page
    assert "75.0 %" in page
    assert "10.0 %" in page
    assert "above chance" in page


def test_wrong_answers_are_marked_in_words(tmp_path: Path) -> None:
    page = render(tmp_path, answers=[row(), row(answer="", expected="8", is_correct=False)])
    assert page.count("✓ correct") == 1
    assert page.count("✗ wrong") == 1
    assert "(nothing)" in page


def test_every_image_of_a_question_is_shown(tmp_path: Path) -> None:
    page = render(tmp_path, answers=[row(images=(picture("PNG"), picture("JPEG")))])
    assert page.count("data:image/png;base64,") == 1
    assert page.count("data:image/jpeg;base64,") == 1
    assert 'alt="image 2 of 2"' in page
    assert "<img" not in render(tmp_path, answers=[row(images=())])


def test_an_image_of_another_format_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither PNG nor JPEG"):
        render(tmp_path, answers=[row(images=(b"<svg onload='x'>",))])
    assert list(tmp_path.iterdir()) == []


def test_a_long_sheet_says_that_it_is_cut_and_keeps_the_wrong_ones(tmp_path: Path) -> None:
    answers = [row() for _ in range(SHEET_LENGTH + 10)]
    answers[-1] = row(answer="unmistakable", is_correct=False)
    page = render(tmp_path, answers=answers)
    assert f"The first {SHEET_LENGTH} of {SHEET_LENGTH + 10} questions" in page
    assert "Wrong answers among the others: 1" in page
    assert "unmistakable" in page


def test_each_phase_has_a_curve_in_the_colour_of_the_text(tmp_path: Path) -> None:
    page = render(tmp_path, curves={"align": curve(5), "sft": curve(4 * MAX_POINTS), "none": []})
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 4
    for figure, drawn in zip(figures, ["loss", "learning rate"] * 2, strict=True):
        ElementTree.fromstring(figure)
        assert "currentColor" in figure
        assert "#010203" not in figure
        assert f">{drawn}<" in figure
    identifiers = [set(re.findall(r' id="(p[0-9a-f]+)"', figure)) for figure in figures]
    assert sum(map(len, identifiers)) == len(set().union(*identifiers)) == 4
    assert "no records" in page
    assert len(page) < 500_000


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}],
        [{"step": 1, "learning_rate": 1e-3}],
        [{"step": step, "loss": math.nan} for step in range(300)],
    ],
)
def test_odd_curves_do_not_stop_the_report(records: list[dict[str, float]], tmp_path: Path) -> None:
    assert "A run" in render(tmp_path, curves={"align": records})


def test_a_report_without_anything_is_still_a_page(tmp_path: Path) -> None:
    page = render(tmp_path, curves={}, answers=[], facts={})
    assert Outline(page).open == []
    assert "<h2>" not in page


def test_the_same_run_gives_the_same_bytes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert render(tmp_path / "new" / "folder") == render(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["report.html"]


def test_scores_keep_tasks_apart() -> None:
    answers = [row(), row(task="larger_digit", chance=0.2, is_correct=False), row()]
    assert score(answers) == [
        TaskScore("which_digit", num_correct=2, num_answers=2, chance=0.1),
        TaskScore("larger_digit", num_correct=0, num_answers=1, chance=0.2),
    ]


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [
        (360, "above chance"),
        (60, "above chance"),
        (40, "no better than chance"),
        (30, "no better than chance"),
        (0, "below chance"),
    ],
)
def test_the_verdict_allows_for_luck(correct: int, verdict: str) -> None:
    assert TaskScore("t", num_correct=correct, num_answers=360, chance=0.1).verdict() == verdict


def test_wilsons_interval_of_a_known_case() -> None:
    low, high = TaskScore("t", num_correct=81, num_answers=263, chance=0.1).interval()
    assert (round(low, 3), round(high, 3)) == (0.255, 0.366)

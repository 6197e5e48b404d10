"""Questions as people write them, their answers, and what counts as right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluation.conftest import Subject
from vila_mc.data.chat_templates import Template
from vila_mc.errors import DataError
from vila_mc.evaluation.questions import Answer, Question, answer_record, ask, read_questions
from vila_mc.evaluation.scores import score

BARE = Template(system="", first="", next="", close="")
"""Without words of its own, which would drown what an untrained model is asked."""
RECORD: dict[str, Any] = {
    "id": 7,
    "task": "colour",
    "images": ["red.png"],
    "question": "What colour?",
    "answer": "red",
    "chance": 0.5,
}


def write(folder: Path, *records: object) -> Path:
    path = folder / "questions.jsonl"
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def question(expected: str | None = "red", **other: Any) -> Question:
    values = dict(id="7", task="colour", images=("red.png",), question="What colour?", chance=0.5)
    return Question(**values | other, expected=expected)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        RECORD | {"id": "7", "more": [1]},
        {("expected" if key == "answer" else key): value for key, value in RECORD.items()},
        RECORD | {"answer": "blue", "expected": "red", "is_correct": False},
    ],
)
def test_questions_are_read(record: dict[str, Any], subject: Subject, tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, record, ""), subject.images) == [question()]


def test_every_documented_line_is_a_question(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "asking.md").read_text()
    lines = re.findall(r"^\|.*\| `(\{.*\})` \|$", text, re.MULTILINE)
    assert len(lines) == 5
    for name in ("cat.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    # The last is of a file of answers to the first.
    found = read_questions(write(tmp_path, *lines[:4]), tmp_path)
    assert read_questions(write(tmp_path, lines[4]), tmp_path) == found[:1]
    assert [len(one.images) for one in found] == [1, 2, 0, 1]
    assert [one.expected for one in found] == ["cat", "no", "cats", None]


@pytest.mark.parametrize(
    ("left_out", "added", "expected"),
    [
        ({"answer", "chance"}, {}, dict(expected=None, chance=None)),
        ({"chance"}, {}, dict(chance=None)),
        ({"answer"}, {}, dict(expected=None)),
        (set(), {"chance": None}, dict(chance=None)),
        # A file of answers is one of questions: what a model said is not the right answer.
        (set(), {"expected": None, "is_correct": None}, dict(expected=None)),
        ({"images"}, {}, dict(images=())),
        (set(), {"question": "Is <image> red?"}, dict(question="Is <image> red?")),
    ],
)
def test_a_question_needs_no_answer_chance_or_image(
    left_out: set[str],
    added: dict[str, Any],
    expected: dict[str, Any],
    subject: Subject,
    tmp_path: Path,
) -> None:
    record = {key: value for key, value in RECORD.items() if key not in left_out} | added
    values: dict[str, Any] = {"expected": "red"} | expected
    assert read_questions(write(tmp_path, record), subject.images) == [question(**values)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no question"),
        (["{"], "questions.jsonl:1 is not JSON"),
        ([RECORD, "[" * 100_000], "questions.jsonl:2 is not JSON"),
        ([[1]], "questions.jsonl:1 is not a JSON object"),
        ([{key: RECORD[key] for key in RECORD if key != "task"}], "is not a question (no task)"),
        ([{key: RECORD[key] for key in RECORD if key != "question"}], "(no question)"),
        ([RECORD | {"question": "<image> or <image>?"}], "has 2 <image> markers but 1 images"),
        ([RECORD | {"images": [], "question": "<image>?"}], "question 7 of"),
        ([RECORD | {"images": "red.png"}], "(images is red.png, not a list of file names)"),
        (
            [{key: RECORD[key] for key in RECORD if key != "images"} | {"image": "red.png"}],
            "(image is no key of a question, images is)",
        ),
        ([RECORD | {"images": [1]}], "(images is [1], not a list of file names)"),
        ([RECORD | {"answer": None}], "(answer is None, not text)"),
        ([RECORD | {"answer": ["red"]}], "(answer is ['red'], not text)"),
        ([RECORD | {"question": {}}], "(question is {}, not text)"),
        ([RECORD | {"answer": " "}], "(the right answer is blank)"),
        ([RECORD, RECORD | {"question": "Which?"}], "holds question 7 of task colour twice"),
        ([RECORD | {"chance": "half"}], "could not convert string to float"),
        ([RECORD | {"chance": 20}], "(chance is 20.0, not between 0 and 1)"),
        ([RECORD | {"chance": float("nan")}], "(chance is nan, not between 0 and 1)"),
        ([RECORD | {"images": ["green.png"]}], "question 7 of"),
        ([RECORD | {"images": ["green.png"]}], "names green.png, which is not in"),
        ([RECORD | {"images": ["../red.png"]}], "leads out of the image folder"),
        ([RECORD | {"images": ["/etc/passwd"]}], "leads out of the image folder"),
        ([RECORD | {"images": ["http://x/red.png"]}], "nothing is fetched"),
    ],
)
def test_what_is_no_question_is_one_line(
    records: list[object], message: str, subject: Subject, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, *records), subject.images)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_lines_end_where_json_lines_end(separator: str, subject: Subject, tmp_path: Path) -> None:
    asked = RECORD | {"question": f"What{separator}colour?"}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(asked, ensure_ascii=False) + "\r\n")
    (found,) = read_questions(path, subject.images)
    assert found.question == asked["question"]


def test_tasks_may_count_their_questions_alike(subject: Subject, tmp_path: Path) -> None:
    path = write(tmp_path, RECORD, RECORD | {"task": "size"})
    assert len(read_questions(path, subject.images)) == 2


def test_an_answer_without_an_end_is_cut(subject: Subject) -> None:
    how: dict[str, Any] = dict(template=BARE, max_new_tokens=3)
    (answer,) = ask(subject.model, subject.tokenizer, [question()], subject.images, **how)
    assert answer.is_cut
    assert answer_record(answer)["is_cut"]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the questions .*none\.jsonl cannot be read"):
        read_questions(tmp_path / "none.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [("red", True), (" Red\n", True), ("red.", False), ("a red", False), ("", False)],
)
def test_an_answer_is_right_if_it_is_the_expected_one(answer: str, is_correct: bool) -> None:
    assert Answer(question(), answer).is_correct is is_correct
    assert answer_record(Answer(question(), answer)) == {
        "id": "7",
        "task": "colour",
        "images": ("red.png",),
        "question": "What colour?",
        "expected": "red",
        "chance": 0.5,
        "answer": answer,
        "is_correct": is_correct,
        "is_cut": False,
    }


def test_accuracy_is_that_of_answers_that_were_expected() -> None:
    said = [
        Answer(question(), "red"),
        Answer(question(), "blue"),
        Answer(question(expected=None), "red"),
        Answer(question(task="size", chance=None), "red"),
        Answer(question(task="size"), "red"),
        Answer(question(task="mood", expected=None, chance=None), "blue"),
    ]
    colour, size = score(said)
    assert (colour.task, colour.num_correct, colour.num_answers, colour.chance) == (
        *("colour", 1, 2),
        0.5,
    )
    assert (size.task, size.num_correct, size.num_answers, size.chance) == ("size", 2, 2, None)
    assert size.verdict() == ""
    assert answer_record(said[-1])["is_correct"] is None


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_answers_come_in_order_whatever_the_batch(subject: Subject, batch: int) -> None:
    asked = [
        question(images=images, question=text)
        for images, text in (
            (("red.png",), "what colour is this?"),
            ((), "one two"),
            (("red.png", "blue.png"), "b"),
        )
    ]
    how: dict[str, Any] = dict(template=BARE, max_new_tokens=4)
    model, tokenizer = subject.model, subject.tokenizer
    alone = [next(iter(ask(model, tokenizer, [one], subject.images, **how))) for one in asked]
    assert list(ask(model, tokenizer, asked, subject.images, batch=batch, **how)) == alone
    assert len({one.answer for one in alone}) > 1  # or it would prove nothing
    assert sum(task.num_answers for task in score(alone)) == 3

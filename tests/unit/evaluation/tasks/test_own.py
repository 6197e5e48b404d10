"""A task of one's own: its lines are read, asked in each form, judged, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vila_mc.data.chat_templates import BUILT_IN
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.tasks.demonstrations import Demonstrations, Shots
from vila_mc.evaluation.tasks.own import OwnTask, own_task
from vila_mc.evaluation.tasks.prompts import prompt_pieces, written
from vila_mc.evaluation.tasks.registry import find_judge
from vila_mc.evaluation.tasks.task import TEXT_FORMS, Form, Task

ANSWERED = {"question": "Which land?", "answers": ["Peru", "the Peru"], "images": ["a.png"]}
CHOICES = {"question": "Lima is in", "choices": ["Chile", "Peru"], "answer": "Peru"}


def write(folder: Path, *lines: Any) -> OwnTask:
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.png")
    file = folder / "lands.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return OwnTask(file, folder)


def read(folder: Path, *lines: Any, **how: Any) -> Task:
    own = write(folder, *lines)
    return own_task(OwnTask(own.file, own.images, **how))


def test_lines_are_read(tmp_path: Path) -> None:
    more = dict(question="Where?", answers=["x"], id=7, category="c", split="train", group="g")
    task = read(tmp_path, ANSWERED, more)
    (item,) = task.read(tmp_path)
    assert (item.id, item.question, item.expected) == ("1", "Which land?", ("Peru", "the Peru"))
    assert [image.name for image in item.images] == ["a.png"]
    assert task.shown is not None
    (shown,) = task.shown(tmp_path)
    assert (shown.id, shown.category, shown.group) == ("7", "c", "g")
    assert task.name == "lands"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no question of this task"),
        ([[1]], "lands.jsonl:1 is damaged: it must be an object"),
        ([{"question": "x"}], "question 1 of"),
        ([{"question": "x"}], "needs answers, or choices and the answer among them"),
        ([{"answers": ["x"]}], "question is missing"),
        ([ANSWERED | {"answer": "x"}], "needs answers, or choices"),
        ([CHOICES | {"answers": ["x"]}], "needs answers, or choices"),
        ([CHOICES | {"answer": "Lima"}], "its answer 'Lima' is not one of its choices"),
        ([CHOICES | {"choices": ["Peru", "Peru"]}], "is not one of its choices"),
        ([CHOICES | {"choices": ["Peru"]}], "choices must have at least 2 entries"),
        ([ANSWERED | {"answers": []}], "answers must have at least 1 entries"),
        ([ANSWERED | {"image": "a.png"}], "image is unknown"),
        ([ANSWERED | {"split": "val"}], "split must be 'test' or 'train'"),
        ([ANSWERED | {"images": ["d.png"]}], "lacks d.png"),
        ([ANSWERED | {"images": ["../a.png"]}], "leads out of the image folder"),
        ([ANSWERED | {"question": "<image><image>"}], "has 2 <image> markers but 1 images"),
        ([ANSWERED, CHOICES], "with choices and without"),
        ([ANSWERED | {"id": 1}, ANSWERED | {"id": "1"}], "holds the id 1 twice"),
        ([ANSWERED | {"split": "train"}], "holds demonstrations alone"),
    ],
)
def test_what_is_no_task_is_one_line(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, *lines)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no none\.jsonl"):
        own_task(OwnTask(tmp_path / "none.jsonl", tmp_path))


SYSTEM = BUILT_IN["vicuna_v1"].system
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("form", "weigh", "count", "expected"),
    [
        ("text", "letters", 0, "Lima is in\nA. Chile\nB. Peru\nAnswer:"),
        (
            *("text", "letters", 1),
            "Oslo is in\nA. Norway\nB. Mali\nAnswer: A\n\nLima is in\nA. Chile\nB. Peru\nAnswer:",
        ),
        ("text", "texts", 1, "Oslo is in Norway\n\nLima is in"),
        ("interleaved", "texts", 1, "Oslo is in Norway Lima is in"),
        (
            *("chat", "letters", 1),
            f"{SYSTEM} USER: Oslo is in\nA. Norway\nB. Mali{SUFFIX} ASSISTANT: A{{eos}}USER: "
            f"Lima is in\nA. Chile\nB. Peru{SUFFIX} ASSISTANT:",
        ),
        (
            *("flamingo", "letters", 1),
            "Question:Oslo is in\nA. Norway\nB. Mali Short answer:A{eos}\n"
            "Question:Lima is in\nA. Chile\nB. Peru Short answer:",
        ),
    ],
)
def test_choices_are_asked(
    form: Form, weigh: str, count: int, expected: str, tmp_path: Path
) -> None:
    shown = dict(question="Oslo is in", choices=["Norway", "Mali"], answer="Norway", split="train")
    task = read(tmp_path, CHOICES, shown, form=form, weigh=weigh)
    (item,) = task.read(tmp_path)
    assert task.shown is not None
    demonstrations = Demonstrations(task.shown(tmp_path), Shots(count, form=form))
    pieces = prompt_pieces(BUILT_IN["vicuna_v1"], task, item, demonstrations.of(item), form)
    assert written(pieces) == expected
    assert task.asks == "letter"
    space = " " if form in TEXT_FORMS else ""
    texts = ["Chile", "Peru"] if weigh == "texts" else ["A", "B"]
    assert [*item.choices.values()] == [space + text for text in texts]
    judge = find_judge(task, None)
    assert judge is not None
    assert [(one.name, one.value) for one in judge[1]([item], ["B"])] == [
        ("accuracy", 100.0),
        ("chance", 50.0),
    ]


def test_images_stand_where_their_markers_are(tmp_path: Path) -> None:
    both = dict(question="Is <image> <image>?", answers=["no"], images=["a.png", "b.png"])
    shown = dict(question="What is it?", answers=["c"], images=["c.png"], split="train")
    for form, expected in {
        "text": "<image>What is it? c\n\nIs <image> <image>?",
        "flamingo": "<image>Question:What is it? Short answer:c{eos}\n"
        "Question:Is <image> <image>? Short answer:",
    }.items():
        task = read(tmp_path, both, shown, form=form)
        (item,) = task.read(tmp_path)
        assert task.shown is not None
        pieces = prompt_pieces(
            BUILT_IN["vicuna_v1"],
            task,
            item,
            task.shown(tmp_path),
            "text" if form == "text" else "flamingo",
        )
        assert written(pieces) == expected


@pytest.mark.parametrize(
    ("judge", "said", "value"),
    [
        ("exact", " peru", 100),
        ("exact", "Peru.", 0),
        ("words", "Peru.", 100),
        ("anls", "Peri", 75),
        ("cider", "Peru", None),
    ],
)
def test_answers_are_judged_by_name(
    judge: str, said: str, value: float | None, tmp_path: Path
) -> None:
    task = read(tmp_path, ANSWERED)
    found = find_judge(task, judge)
    assert found is not None
    figure = found[1](task.read(tmp_path), [said])[0]
    assert value is None or figure.value == value


def test_chance_is_one_answer_to_all(tmp_path: Path) -> None:
    answers = [["Peru", "the Peru"], ["peru ", "Peru"], ["Chad"], ["Chad."], ["chad!"]]
    task = read(tmp_path, *({"question": "Which?", "answers": each} for each in answers))
    for judge, chance in {"exact": 40, "words": 60}.items():
        found = find_judge(task, judge)
        assert found is not None
        figures = found[1](task.read(tmp_path), ["Chad"] * 5)
        accuracy = 20 if judge == "exact" else 60
        assert [(one.name, one.value) for one in figures] == [
            ("accuracy", accuracy),
            ("chance", chance),
        ]


def test_vqa_needs_ten_people(tmp_path: Path) -> None:
    task = read(tmp_path, ANSWERED | {"answers": ["peru"] * 10})
    found = find_judge(task, "vqa")
    assert found is not None
    assert found[1](task.read(tmp_path), ["Peru"])[0].value == 100
    with pytest.raises(ConfigError, match="question 1 has 2 answers"):
        found[1](read(tmp_path, ANSWERED).read(tmp_path), ["Peru"])

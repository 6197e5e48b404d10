"""POPE and MME: whether something is so in an image."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.yes_no import (
    Reading,
    f1_influences,
    mme_images,
    pope_score,
    read_mme,
    read_pope,
)
from vila_mc.evaluation.tasks.files import TaskImages, read_json_lines, read_text, require_some
from vila_mc.evaluation.tasks.task import WORD_SUFFIX, Figure, Item, Task, mean_of

_POPE_SETS = ("random", "popular", "adversarial")
_SAYS = ("yes", "no")
_QUESTIONS_OF_AN_IMAGE = 2
"""Of MME."""
_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
_COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


class _PopeQuestion(TypedDict):
    question_id: int | str
    image: str
    text: str
    label: str


_POPE = TypeAdapter(_PopeQuestion)


def _read_pope(data: Path) -> list[Item]:
    images = TaskImages(data, "val2014")
    found = []
    for name in _POPE_SETS:
        for entry in read_json_lines(data, f"coco/coco_pope_{name}.json", _POPE):
            found.append(
                Item(
                    id=f"{name}/{entry['question_id']}",
                    question=entry["text"] + WORD_SUFFIX,
                    images=(images.find(entry["image"]),),
                    expected=(entry["label"].lower().strip(),),
                    category=name,
                )
            )
    return require_some(found, data)


def _judge_pope(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    """The mean F1 of the three sets, as LLaVA's are reported, and each set's figures.

    Intervals of F1 are over images, which the sets have in common.
    """
    f1s: list[float] = []
    moved: dict[str, float] = defaultdict(float)
    figures: list[Figure] = []
    for name, rows in _by_set(items, answers, "first_sentence").items():
        f1, *others = _figures(rows)
        f1s.append(f1.value)
        for image, influence in _influences(rows).items():
            moved[image] += influence
        figures += [replace(one, name=f"{name} {one.name}") for one in (f1, *others)]
    return [_f1("F1", f1s, moved, len(items)), *figures]


def _judge_pope_pooled(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    """The figures of all answers in one, as lmms-eval reckons them, and then each set's."""
    sets = _by_set(items, answers, "exact")
    figures = _figures([row for rows in sets.values() for row in rows])
    if len(sets) > 1:
        for name, rows in sets.items():
            figures += [replace(one, name=f"{name} {one.name}") for one in _figures(rows)]
    return figures


class _Row(NamedTuple):
    """An answer to POPE."""

    said: str
    expected: str
    image: str


def _by_set(
    items: Sequence[Item], answers: Sequence[str], reading: Reading
) -> dict[str, list[_Row]]:
    """What was said, as it is read, by set in order of their names."""
    sets: dict[str, list[_Row]] = {name: [] for name in sorted({item.category for item in items})}
    for item, answer in zip(items, answers, strict=True):
        row = _Row(read_pope(answer, reading), item.expected[0], item.images[0].name)
        sets[item.category].append(row)
    return sets


def _influences(rows: Sequence[_Row]) -> dict[str, float]:
    return f1_influences(*zip(*rows, strict=True))


def _figures(rows: Sequence[_Row]) -> list[Figure]:
    f1 = 100 * pope_score([row.said for row in rows], [row.expected for row in rows]).f1
    yes = [row for row in rows if row.said == "yes"]
    there = [row for row in rows if row.expected == "yes" and row.said in _SAYS]
    return [
        _f1("F1", [f1], _influences(rows), len(rows)),
        _share("accuracy", [row.said == row.expected for row in rows]),
        _share("precision", [row.expected == "yes" for row in yes]),
        _share("recall", [row.said == "yes" for row in there]),
        _share("yes", [row.said == "yes" for row in rows]),
    ]


def _share(name: str, answers: Sequence[bool]) -> Figure:
    return mean_of(name, [float(one) for one in answers]) if answers else Figure(name, 0.0, 0)


def _f1(name: str, of_sets: Sequence[float], moved: Mapping[str, float], count: int) -> Figure:
    """The mean of some sets, and its interval; ``moved`` is the sum of the sets' influences."""
    mean, images = fmean(of_sets), len(moved)
    squares = sum((influence / len(of_sets)) ** 2 for influence in moved.values())
    if images < 2 or not squares:
        return Figure(name, mean, count)
    spread = 196 * math.sqrt(squares * images / (images - 1))
    return Figure(name, mean, count, (mean - spread, mean + spread))


def _read_mme(data: Path) -> list[Item]:
    """A folder for each category, with texts beside the images or in folders of their own."""
    found = []
    for category in (*_PERCEPTION, *_COGNITION):
        folder = data / category
        if not folder.is_dir():
            raise DataError(f"{data} holds no folder {category}. Unpack MME whole.")
        apart = (folder / "questions_answers_YN").is_dir()
        texts = folder / "questions_answers_YN" if apart else folder
        images = TaskImages(folder, "images" if apart else ".")
        for text in sorted(texts.glob("*.txt")):
            image = next(
                (f"{text.stem}{end}" for end in (".jpg", ".png") if images.has(text.stem + end)),
                text.stem + ".jpg",
            )
            lines = read_text(texts, text.name).strip().split("\n")
            if len(lines) != _QUESTIONS_OF_AN_IMAGE:
                raise DataError(
                    f"{text} holds {len(lines)} questions, not the {_QUESTIONS_OF_AN_IMAGE} of an "
                    "image that MME counts together. Unpack MME whole."
                )
            for number, line in enumerate(lines):
                question, tab, answer = line.partition("\t")
                if not tab or answer.strip().lower() not in _SAYS:
                    raise DataError(f"{text} has no question, tab and Yes or No: {line[:80]!r}.")
                found.append(
                    Item(
                        id=f"{category}/{text.stem}/{number}",
                        question=question,
                        images=(images.find(image),),
                        expected=(answer.strip().lower(),),
                        category=category,
                        pair=f"{category}/{text.stem}",
                    )
                )
    return require_some(found, data)


def _judge_mme(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    """Points of perception (of 2,000) and cognition (of 800), and of each category (of 200).

    Raises:
        DataError: an image has not its two questions.
    """
    rows = [
        (item.category, item.pair, read_mme(answer) == item.expected[0])
        for item, answer in zip(items, answers, strict=True)
    ]
    try:
        points = mme_images(rows)
    except ValueError as error:
        raise DataError(f"MME counts both questions of an image, and {error}.") from None
    by_category = {
        name: replace(mean_of(name, [one / 200 for one in each], scale=200), count=2 * len(each))
        for name, each in points.items()
    }
    figures = []
    for name, categories in (("perception", _PERCEPTION), ("cognition", _COGNITION)):
        if found := [by_category[one] for one in categories if one in by_category]:
            figures.append(_sum_of(name, found))
    return [*figures, *by_category.values()]


def _sum_of(name: str, figures: Sequence[Figure]) -> Figure:
    """The sum of independent figures; without an interval where one of them has none."""
    total, count = sum(one.value for one in figures), sum(one.count for one in figures)
    intervals = [one.interval for one in figures if one.interval is not None]
    if len(intervals) < len(figures):
        return Figure(name, total, count)
    below, above = (
        math.hypot(*(one[end] - each.value for one, each in zip(intervals, figures, strict=True)))
        for end in (0, 1)
    )
    return Figure(name, total, count, (total - below, total + above))


TASKS = (
    Task(
        "pope",
        "coco/coco_pope_{random,popular,adversarial}.json, val2014/",
        _read_pope,
        {
            "llava": _judge_pope,
            "lmms-eval": _judge_pope_pooled,
        },
        max_new_tokens=16,
        released=(8_910, 9_000),
    ),
    Task(
        "mme",
        "a folder for each of the 14 categories, as released",
        _read_mme,
        {"lmms-eval": _judge_mme},
        max_new_tokens=16,
        released=(2_374,),
    ),
)
"""POPE and MME."""

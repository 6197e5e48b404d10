"""POPE and MME: whether something is so in an image."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TypedDict

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


def _judge_pope(items: Sequence[Item], answers: Sequence[str], reading: Reading) -> list[Figure]:
    """The mean F1 of the three sets, as LLaVA reports it, and each set's figures.

    Intervals of F1 are over images, which the sets have in common.
    """
    read = [read_pope(answer, reading) for answer in answers]
    figures: list[Figure] = []
    f1s: list[float] = []
    moved: dict[str, float] = defaultdict(float)
    for name in sorted({item.category for item in items}):
        rows = [at for at, item in enumerate(items) if item.category == name]
        said, expected = [read[at] for at in rows], [items[at].expected[0] for at in rows]
        pairs = list(zip(said, expected, strict=True))
        influences = f1_influences(said, expected, [items[at].images[0].name for at in rows])
        for image, influence in influences.items():
            moved[image] += influence
        f1s.append(100 * pope_score(said, expected).f1)
        figures += [
            _share(f"{name} accuracy", [a == b for a, b in pairs]),
            _f1(f"{name} F1", f1s[-1:], influences, len(rows)),
            _share(f"{name} precision", [b == "yes" for a, b in pairs if a == "yes"]),
            _share(f"{name} recall", [a == "yes" for a, b in pairs if b == "yes" and a in _SAYS]),
            _share(f"{name} yes", [a == "yes" for a in said]),
        ]
    return [_f1("F1", f1s, moved, len(items)), *figures]


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
            for number, line in enumerate(read_text(texts, text.name).strip().split("\n")):
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
                        pair=text.stem,
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
            "llava": partial(_judge_pope, reading="first_sentence"),
            "lmms-eval": partial(_judge_pope, reading="exact"),
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

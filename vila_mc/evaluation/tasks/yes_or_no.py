"""POPE and MME: whether something is so in an image."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.yes_no import Reading, mme_score, pope_score, read_mme, read_pope
from vila_mc.evaluation.tasks.files import TaskImages, read_json_lines, read_text, require_some
from vila_mc.evaluation.tasks.task import WORD_SUFFIX, Figure, Item, Task, mean_of

_POPE_SETS = ("random", "popular", "adversarial")
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
    """The mean F1 of the three sets, as LLaVA reports it, and each set's figures."""
    read = [read_pope(answer, reading) for answer in answers]
    figures, f1s = [], []
    for name in sorted({item.category for item in items}):
        rows = [at for at, item in enumerate(items) if item.category == name]
        score = pope_score([read[at] for at in rows], [items[at].expected[0] for at in rows])
        f1s.append(100 * score.f1)
        right = [float(read[at] == items[at].expected[0]) for at in rows]
        figures += [
            mean_of(f"{name} accuracy", right),
            Figure(f"{name} F1", 100 * score.f1, len(rows)),
            Figure(f"{name} precision", 100 * score.precision, len(rows)),
            Figure(f"{name} recall", 100 * score.recall, len(rows)),
            Figure(f"{name} yes", 100 * score.yes_share, len(rows)),
        ]
    return [Figure("F1", sum(f1s) / len(f1s), len(items)), *figures]


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
                if not tab or answer.strip().lower() not in ("yes", "no"):
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
        points = mme_score(rows)
    except ValueError as error:
        raise DataError(f"MME counts both questions of an image, and {error}.") from None
    figures = []
    for name, categories in (("perception", _PERCEPTION), ("cognition", _COGNITION)):
        found = [category for category in categories if category in points]
        if found:
            count = sum(item.category in found for item in items)
            figures.append(Figure(name, sum(points[category] for category in found), count))
    counts = [item.category for item in items]
    return figures + [Figure(name, value, counts.count(name)) for name, value in points.items()]


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

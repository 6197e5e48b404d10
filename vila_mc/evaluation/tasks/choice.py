"""ScienceQA, MMBench and SEED-Bench: one of several given answers."""

import base64
import binascii
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import TypeAdapter

from vila_mc.data.turns import IMAGE_MARKER
from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.choices import Reading, read_mmbench, read_science_qa, read_seed
from vila_mc.evaluation.tasks.files import (
    TaskImages,
    only_file,
    read_json,
    read_table,
    require_some,
)
from vila_mc.evaluation.tasks.task import (
    LETTER_SUFFIX,
    Figure,
    Item,
    Judge,
    Task,
    judge_each,
    with_prompts,
)
from vila_mc.flow import RawImage


class _ScienceQuestion(TypedDict):
    id: int | str
    image: NotRequired[str]
    conversations: list[dict[str, str]]


class _SeedQuestion(TypedDict):
    question_id: int | str
    question: str
    choice_a: str
    choice_b: str
    choice_c: str
    choice_d: str
    answer: str
    data_id: str
    data_type: str
    question_type_id: int


class _Seed(TypedDict):
    questions: list[_SeedQuestion]


_FIRST_ROTATION = 1_000_000
"""Of MMBench: what the index of a question's rotations is higher by, and by its multiples."""
_SCIENCE = TypeAdapter(list[_ScienceQuestion])
_SEED = TypeAdapter(_Seed)


def _read_science_qa(data: Path, split: str = "test") -> list[Item]:
    """LLaVA's form of it: the prompt is in the file, the answer begins with its letter."""
    name = f"llava_{split}_CQM-A.json"
    entries = read_json(data, name, _SCIENCE)
    images = TaskImages(data, f"images/{split}") if any("image" in e for e in entries) else None
    found = []
    for entry in entries:
        turns = [turn.get("value", "") for turn in entry["conversations"]]
        letter = turns[1].strip()[:1] if len(turns) > 1 else ""
        if len(turns) != 2 or letter not in string.ascii_uppercase:
            raise DataError(
                f"question {entry['id']} of {data / name} is not a question and "
                "an answer that begins with its letter. Give the file as it was released."
            )
        words = turns[0].replace(IMAGE_MARKER, "").strip()
        shown = (images.find(entry["image"]),) if images and "image" in entry else ()
        found.append(
            Item(
                id=str(entry["id"]),
                question=words + LETTER_SUFFIX,
                llava_prompt=f"{IMAGE_MARKER}\n{words}{LETTER_SUFFIX}" if shown else "",
                words=words,
                images=shown,
                expected=(letter,),
                category="with an image" if shown else "without an image",
            )
        )
    return require_some(found, data)


def _read_seed(data: Path) -> list[Item]:
    images = TaskImages(data, "SEED-Bench-image")
    return require_some(
        (
            Item(
                id=str(entry["question_id"]),
                llava_id=_as_number(str(entry["question_id"])),
                question=_with_choices(entry["question"], (choices := _seed_choices(entry)))
                + LETTER_SUFFIX,
                images=(images.find(entry["data_id"]),),
                expected=(entry["answer"],),
                category=f"type {entry['question_type_id']}",
                choices=choices,
            )
            for entry in read_json(data, "SEED-Bench.json", _SEED)["questions"]
            if entry["data_type"] == "image"
        ),
        data,
    )


def _seed_choices(entry: _SeedQuestion) -> dict[str, str]:
    texts = (entry["choice_a"], entry["choice_b"], entry["choice_c"], entry["choice_d"])
    return dict(zip("ABCD", texts, strict=True))


def _read_mmbench(data: Path, *, pattern: str, is_answered: bool, asked_as: Reading) -> list[Item]:
    """Each question with its rotations, which have the same choices in other places, behind it."""
    name = only_file(data, pattern)
    header, *rows = read_table(data, name, "\t")
    found: dict[str, list[Item]] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{data / name}:{number} has {len(row)} columns, not {len(header)}. Give the file "
                "as it was released."
            )
        entry = dict(zip(header, row, strict=True))
        try:
            item = _mmbench_item(entry, is_answered, asked_as)
        except (KeyError, binascii.Error, ValueError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{data / name}:{number} is no question of MMBench: {what}.") from None
        found.setdefault(item.pair, []).append(item)
    return require_some((item for rotations in found.values() for item in rotations), data)


def _mmbench_item(entry: Mapping[str, str], is_answered: bool, asked_as: Reading) -> Item:
    """Raises KeyError, ValueError or binascii.Error."""
    index = entry["index"]
    choices = {
        letter: entry[letter] for letter in "ABCD" if entry.get(letter) not in (None, "", "nan")
    }
    if is_answered and entry["answer"] not in choices:
        raise ValueError(f"its answer {entry['answer'][:80]!r} is none of {', '.join(choices)}")
    hint = entry.get("hint", "")
    return Item(
        id=index,
        llava_id=_as_number(index),
        question=_mmbench_question(
            entry["question"], "" if hint == "nan" else hint, choices, asked_as
        ),
        images=(RawImage(base64.b64decode(entry["image"], validate=True), index),),
        expected=(entry["answer"],) if is_answered else (),
        category=entry.get("category", ""),
        pair=str(int(index) % _FIRST_ROTATION) if index.isdecimal() else index,
        choices=choices,
    )


def _mmbench_question(
    question: str, hint: str, choices: Mapping[str, str], asked_as: Reading
) -> str:
    if asked_as == "llava":
        asked = f"{hint}\n{question}" if hint else question
        return _with_choices(asked, choices) + LETTER_SUFFIX
    asked = f"{hint} {question}" if hint else question
    return _with_choices(f"{asked} There are several options:", choices) + "\n" + LETTER_SUFFIX


def _judge_mmbench(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    """A question counts where it and all its rotations are answered right."""
    questions: dict[str, Item] = {}
    right: dict[str, bool] = {}
    for item, said in zip(items, answers, strict=True):
        questions.setdefault(item.pair, item)
        is_right = read_mmbench(said, item.choices) == item.expected[0]
        right[item.pair] = right.get(item.pair, True) and is_right
    judge = judge_each(lambda item, _: right[item.pair])
    return judge([*questions.values()], [""] * len(questions))


def _judge_science_qa(reading: Reading) -> Judge:
    return judge_each(lambda item, said: read_science_qa(said, reading) == item.expected[0])


def _as_number(identity: str) -> int | str:
    return int(identity) if identity.isdecimal() else identity


def _with_choices(question: str, choices: Mapping[str, str]) -> str:
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.items())])


def _mmbench(name: str, pattern: str, judges: Mapping[str, Judge]) -> Task:
    read = partial(_read_mmbench, pattern=pattern, is_answered=bool(judges))
    task = Task(
        name,
        f"{pattern}, with its images",
        partial(read, asked_as="llava"),
        judges,
        max_new_tokens=16,
    )
    return with_prompts(task, replace(task, read=partial(read, asked_as="lmms-eval")))


TASKS = (
    Task(
        "scienceqa",
        "llava_test_CQM-A.json, images/test/",
        _read_science_qa,
        {"lmms-eval": _judge_science_qa("lmms-eval"), "llava": _judge_science_qa("llava")},
        max_new_tokens=16,
        released=(4_241,),
        shown=partial(_read_science_qa, split="train"),
    ),
    _mmbench("mmbench", "mmbench_dev_*.tsv", {"lmms-eval": _judge_mmbench}),
    _mmbench("mmbench_test", "mmbench_test_*.tsv", {}),
    Task(
        "seed",
        "SEED-Bench.json, SEED-Bench-image/",
        _read_seed,
        {
            "lmms-eval": judge_each(lambda item, said: read_seed(said) == item.expected[0].upper()),
            "llava": judge_each(lambda item, said: said == item.expected[0]),
        },
        max_new_tokens=16,
        released=(14_233,),
    ),
)
"""ScienceQA, MMBench and SEED-Bench."""

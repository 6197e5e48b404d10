"""ScienceQA, MMBench and SEED-Bench: one of several given answers."""

import base64
import binascii
import string
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.choices import read_mmbench, read_science_qa, read_seed
from vila_mc.evaluation.tasks.files import (
    TaskImages,
    only_file,
    read_json,
    read_table,
    require_some,
)
from vila_mc.evaluation.tasks.task import LETTER_SUFFIX, Item, Task, judge_each
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
        words = turns[0].replace("<image>", "").strip()
        shown = (images.find(entry["image"]),) if images and "image" in entry else ()
        found.append(
            Item(
                id=str(entry["id"]),
                question=words + LETTER_SUFFIX,
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
                question=_with_choices(entry["question"], (choices := _seed_choices(entry)), ". ")
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


def _read_mmbench(data: Path) -> list[Item]:
    name = only_file(data, "mmbench_dev*.tsv")
    header, *rows = read_table(data, name, "\t")
    found = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{data / name}:{number} has {len(row)} columns, not {len(header)}. Give the file "
                "as it was released."
            )
        entry = dict(zip(header, row, strict=True))
        try:
            found.append(_mmbench_item(entry))
        except (KeyError, binascii.Error, ValueError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{data / name}:{number} is no question of MMBench: {what}.") from None
    return require_some(found, data)


def _mmbench_item(entry: Mapping[str, str]) -> Item:
    """Raises KeyError, ValueError or binascii.Error."""
    choices = {
        letter: entry[letter] for letter in "ABCD" if entry.get(letter) not in (None, "", "nan")
    }
    hint = entry.get("hint", "")
    asked = f"{hint}\n{entry['question']}" if hint and hint != "nan" else entry["question"]
    return Item(
        id=entry["index"],
        llava_id=_as_number(entry["index"]),
        question=_with_choices(asked, choices, ". ") + LETTER_SUFFIX,
        images=(RawImage(base64.b64decode(entry["image"], validate=True), entry["index"]),),
        expected=(entry["answer"],) if entry.get("answer") else (),
        category=entry.get("category", ""),
        choices=choices,
    )


def _as_number(identity: str) -> int | str:
    return int(identity) if identity.isdecimal() else identity


def _with_choices(question: str, choices: Mapping[str, str], between: str) -> str:
    return "\n".join([question, *(f"{letter}{between}{text}" for letter, text in choices.items())])


TASKS = (
    Task(
        "scienceqa",
        "llava_test_CQM-A.json, images/test/",
        _read_science_qa,
        {"lmms-eval": judge_each(lambda item, said: read_science_qa(said) == item.expected[0])},
        max_new_tokens=16,
        released=(4_241,),
        shown=partial(_read_science_qa, split="train"),
    ),
    Task(
        "mmbench",
        "mmbench_dev_*.tsv, with its images",
        _read_mmbench,
        {
            "lmms-eval": judge_each(
                lambda item, said: read_mmbench(said, item.choices) == item.expected[0]
            )
        },
        max_new_tokens=16,
    ),
    Task(
        "seed",
        "SEED-Bench.json, SEED-Bench-image/",
        _read_seed,
        {"lmms-eval": judge_each(lambda item, said: read_seed(said) == item.expected[0].upper())},
        max_new_tokens=16,
        released=(14_233,),
    ),
)
"""ScienceQA, MMBench and SEED-Bench."""

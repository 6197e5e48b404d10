"""VQAv2, OKVQA, TextVQA, VizWiz and GQA: a word or a phrase about an image."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.human_answers import Form, human_accuracy
from vila_mc.evaluation.metrics.texts import is_equal
from vila_mc.evaluation.tasks.files import TaskImages, only_file, read_json, require_some
from vila_mc.evaluation.tasks.task import (
    WORD_SUFFIX,
    Item,
    Judge,
    Task,
    judge_each,
    with_prompts,
)

_UNANSWERABLE_SUFFIX = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + WORD_SUFFIX
)
"""What LLaVA writes behind VizWiz's questions, and lmms-eval behind OKVQA's, too."""

_Number = int | str


class _Said(TypedDict):
    answer: str


class _Annotation(TypedDict):
    question_id: _Number
    answers: list[_Said]
    answer_type: str


class _Annotations(TypedDict):
    annotations: list[_Annotation]


class _Question(TypedDict):
    question_id: _Number
    image_id: int
    question: str


class _Questions(TypedDict):
    questions: list[_Question]


class _TextVqaQuestion(TypedDict):
    question_id: _Number
    image_id: str
    question: str
    answers: list[str]


class _TextVqa(TypedDict):
    data: list[_TextVqaQuestion]


class _ImageTokens(TypedDict):
    image_id: str
    ocr_tokens: list[str]


class _Ocr(TypedDict):
    data: list[_ImageTokens]


class _VizWizAsked(TypedDict):
    image: str
    question: str


class _VizWizQuestion(_VizWizAsked):
    answers: list[_Said]
    answer_type: str


class _GqaQuestion(TypedDict):
    question: str
    imageId: str
    answer: str


_QUESTIONS = TypeAdapter(_Questions)
_ANNOTATIONS = TypeAdapter(_Annotations)
_TEXT_VQA = TypeAdapter(_TextVqa)
_OCR = TypeAdapter(_Ocr)
_VIZ_WIZ = TypeAdapter(list[_VizWizQuestion])
_VIZ_WIZ_TEST = TypeAdapter(list[_VizWizAsked])
_GQA = TypeAdapter(dict[str, _GqaQuestion])
_TEST_DEV = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
_TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
_GQA_LIMITS = 4 << 30, 300_000_000
"""Bytes and values of GQA's questions: those of training are near a million, with programs."""


def _read_coco_questions(
    data: Path,
    questions: str,
    annotations: str,
    split: str = "val2014",
    suffix: str = WORD_SUFFIX,
) -> list[Item]:
    """VQAv2's files, and OKVQA's of the same form."""
    images = TaskImages(data, split)
    known = {
        str(entry["question_id"]): entry
        for entry in read_json(data, only_file(data, annotations.format(split)), _ANNOTATIONS)[
            "annotations"
        ]
    }
    asked = read_json(data, only_file(data, questions.format(split)), _QUESTIONS)["questions"]
    return require_some(
        (
            replace(
                _coco_item(entry, images, split, suffix),
                expected=tuple(said["answer"] for said in known[identity]["answers"]),
                category=known[identity]["answer_type"],
            )
            for entry in asked
            if (identity := str(entry["question_id"])) in known
        ),
        data,
    )


def _read_vqav2_test(data: Path) -> list[Item]:
    """Test-dev, or the whole test split where its file alone is there."""
    images = TaskImages(data, "test2015")
    name = _TEST_DEV if (data / _TEST_DEV).is_file() else only_file(data, _TEST)
    entries = read_json(data, name, _QUESTIONS)["questions"]
    return require_some(
        (_coco_item(entry, images, "test2015", WORD_SUFFIX) for entry in entries), data
    )


def _coco_item(entry: _Question, images: TaskImages, split: str, suffix: str) -> Item:
    return Item(
        id=str(entry["question_id"]),
        llava_id=entry["question_id"],
        question=entry["question"] + suffix,
        words=entry["question"],
        images=(images.find(f"COCO_{split}_{entry['image_id']:012}.jpg"),),
    )


def _read_text_vqa(
    data: Path, split: str = "val", *, with_ocr: bool = False, is_capitalized: bool = False
) -> list[Item]:
    images = TaskImages(data, "train_images", "train_val_images")
    entries = read_json(data, f"TextVQA_0.5.1_{split}.json", _TEXT_VQA)["data"]
    seen = _ocr_lines(data, split) if with_ocr else {}
    found = []
    for entry in entries:
        if with_ocr and entry["image_id"] not in seen:
            raise DataError(
                f"{data / _ocr_file(split)} has no OCR tokens of image {entry['image_id']}. Give "
                "the file as it was released."
            )
        words = entry["question"].capitalize() if is_capitalized else entry["question"]
        words += seen.get(entry["image_id"], "")
        found.append(
            Item(
                id=str(entry["question_id"]),
                llava_id=entry["image_id"],
                question=words + WORD_SUFFIX,
                words=words,
                images=(images.find(f"{entry['image_id']}.jpg"),),
                expected=tuple(entry["answers"]),
            )
        )
    return require_some(found, data)


def _ocr_file(split: str) -> str:
    return f"TextVQA_Rosetta_OCR_v0.2_{split}.json"


def _ocr_lines(data: Path, split: str) -> dict[str, str]:
    """By image: what LLaVA's released questions, and lmms-eval, say of the text in it."""
    return {
        entry["image_id"]: f"\nReference OCR token: {', '.join(entry['ocr_tokens'])}"
        for entry in read_json(data, _ocr_file(split), _OCR)["data"]
    }


def _read_viz_wiz(data: Path, split: str = "val", *, is_capitalized: bool = False) -> list[Item]:
    images = TaskImages(data, split)
    return require_some(
        (
            replace(
                _viz_wiz_item(entry, images, is_capitalized),
                expected=tuple(said["answer"] for said in entry["answers"]),
                category=entry["answer_type"],
            )
            for entry in read_json(data, f"{split}.json", _VIZ_WIZ)
        ),
        data,
    )


def _read_viz_wiz_test(data: Path, *, is_capitalized: bool = False) -> list[Item]:
    images = TaskImages(data, "test")
    entries = read_json(data, "test.json", _VIZ_WIZ_TEST)
    return require_some((_viz_wiz_item(entry, images, is_capitalized) for entry in entries), data)


def _viz_wiz_item(entry: _VizWizAsked, images: TaskImages, is_capitalized: bool) -> Item:
    words = entry["question"].capitalize() if is_capitalized else entry["question"]
    return Item(
        id=entry["image"],
        question=words + _UNANSWERABLE_SUFFIX,
        words=words,
        images=(images.find(entry["image"]),),
    )


def _read_gqa(data: Path, split: str = "testdev") -> list[Item]:
    images = TaskImages(data, "images")
    entries = read_json(data, f"{split}_balanced_questions.json", _GQA, *_GQA_LIMITS)
    return require_some(
        (
            Item(
                id=identity,
                question=entry["question"] + WORD_SUFFIX,
                words=entry["question"],
                images=(images.find(f"{entry['imageId']}.jpg"),),
                expected=(entry["answer"],),
            )
            for identity, entry in entries.items()
        ),
        data,
    )


def _by_form(form: Form) -> Judge:
    return judge_each(lambda item, answer: human_accuracy(answer, item.expected, form))


_LMMS_EVAL: dict[str, Judge] = {"lmms-eval": _by_form("evalai")}

_VQAV2 = partial(
    _read_coco_questions,
    questions="v2_OpenEnded_*{}_questions.json",
    annotations="v2_*{}_annotations.json",
)
_OKVQA = partial(
    _read_coco_questions,
    questions="OpenEnded_*{}_questions.json",
    annotations="mscoco_{}_annotations.json",
)
_OKVQA_TASK = Task(
    "okvqa",
    "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/",
    _OKVQA,
    _LMMS_EVAL | {"official": _by_form("official")},
    max_new_tokens=16,
    released=(5_046,),
    shown=partial(_OKVQA, split="train2014"),
)


def _text_vqa(*, is_capitalized: bool) -> Task:
    """With the questions as they are, as LLaVA has them; or with one capital, in front."""
    read = partial(_read_text_vqa, is_capitalized=is_capitalized)
    task = Task(
        "textvqa",
        "TextVQA_0.5.1_val.json, train_images/",
        read,
        _LMMS_EVAL,
        max_new_tokens=16,
        released=(5_000,),
        shown=partial(read, split="train"),
    )
    seeing = partial(read, with_ocr=True)
    return replace(task, with_ocr=replace(task, read=seeing, shown=partial(seeing, split="train")))


def _viz_wiz(*, is_capitalized: bool) -> Task:
    """With the questions as they are, as LLaVA has them; or with one capital, in front."""
    read = partial(_read_viz_wiz, is_capitalized=is_capitalized)
    return Task(
        "vizwiz",
        "val.json, val/",
        read,
        _LMMS_EVAL,
        max_new_tokens=16,
        released=(4_319,),
        shown=partial(read, split="train"),
    )


def _viz_wiz_test(*, is_capitalized: bool) -> Task:
    return replace(
        _viz_wiz(is_capitalized=is_capitalized),
        name="vizwiz_test",
        files="test.json, test/",
        read=partial(_read_viz_wiz_test, is_capitalized=is_capitalized),
        judges={},
        released=(8_000,),
    )


TASKS = (
    Task(
        "vqav2",
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
        _VQAV2,
        {"official": _by_form("official"), "lmms-eval": _by_form("normalized")},
        max_new_tokens=16,
        released=(214_354,),
        shown=partial(_VQAV2, split="train2014"),
    ),
    Task(
        "vqav2_test",
        f"{_TEST_DEV} or {_TEST}, test2015/",
        _read_vqav2_test,
        {},
        max_new_tokens=16,
        released=(107_394, 447_793),
        shown=partial(_VQAV2, split="train2014"),
    ),
    with_prompts(
        _OKVQA_TASK,
        replace(
            _OKVQA_TASK,
            read=partial(_OKVQA, suffix=_UNANSWERABLE_SUFFIX),
            shown=partial(_OKVQA, suffix=_UNANSWERABLE_SUFFIX, split="train2014"),
        ),
    ),
    with_prompts(_text_vqa(is_capitalized=False), _text_vqa(is_capitalized=True)),
    with_prompts(_viz_wiz(is_capitalized=False), _viz_wiz(is_capitalized=True)),
    with_prompts(_viz_wiz_test(is_capitalized=False), _viz_wiz_test(is_capitalized=True)),
    Task(
        "gqa",
        "testdev_balanced_questions.json, images/",
        _read_gqa,
        {
            "lmms-eval": judge_each(lambda item, said: is_equal(said, item.expected[0])),
            "llava": judge_each(lambda item, said: said.rstrip(".").lower() == item.expected[0]),
        },
        max_new_tokens=16,
        released=(12_578,),
        shown=partial(_read_gqa, split="train"),
    ),
)
"""VQAv2, OKVQA, TextVQA, VizWiz and GQA."""

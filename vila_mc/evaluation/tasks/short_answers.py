"""VQAv2, OKVQA, TextVQA, VizWiz and GQA: a word or a phrase about an image."""

from functools import partial
from pathlib import Path
from typing import TypedDict

from pydantic import TypeAdapter

from vila_mc.evaluation.metrics.human_answers import Form, human_accuracy
from vila_mc.evaluation.metrics.texts import is_equal
from vila_mc.evaluation.tasks.files import TaskImages, only_file, read_json, require_some
from vila_mc.evaluation.tasks.task import WORD_SUFFIX, Item, Judge, Task, judge_each

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


class _VizWizQuestion(TypedDict):
    image: str
    question: str
    answers: list[_Said]
    answer_type: str


class _GqaQuestion(TypedDict):
    question: str
    imageId: str
    answer: str


_QUESTIONS = TypeAdapter(_Questions)
_ANNOTATIONS = TypeAdapter(_Annotations)
_TEXT_VQA = TypeAdapter(_TextVqa)
_VIZ_WIZ = TypeAdapter(list[_VizWizQuestion])
_GQA = TypeAdapter(dict[str, _GqaQuestion])


def _read_coco_questions(data: Path, questions: str, annotations: str) -> list[Item]:
    """VQAv2's files, and OKVQA's of the same form."""
    images = TaskImages(data, "val2014")
    known = {
        str(entry["question_id"]): entry
        for entry in read_json(data, only_file(data, annotations), _ANNOTATIONS)["annotations"]
    }
    return require_some(
        (
            Item(
                id=identity,
                question=entry["question"] + WORD_SUFFIX,
                images=(images.find(f"COCO_val2014_{entry['image_id']:012}.jpg"),),
                expected=tuple(said["answer"] for said in known[identity]["answers"]),
                category=known[identity]["answer_type"],
            )
            for entry in read_json(data, only_file(data, questions), _QUESTIONS)["questions"]
            if (identity := str(entry["question_id"])) in known
        ),
        data,
    )


def _read_text_vqa(data: Path) -> list[Item]:
    images = TaskImages(data, "train_images", "train_val_images")
    entries = read_json(data, "TextVQA_0.5.1_val.json", _TEXT_VQA)["data"]
    return require_some(
        (
            Item(
                id=str(entry["question_id"]),
                # LLaVA asks it as it is, lmms-eval with one capital and the rest in small letters.
                question=entry["question"] + WORD_SUFFIX,
                images=(images.find(f"{entry['image_id']}.jpg"),),
                expected=tuple(entry["answers"]),
            )
            for entry in entries
        ),
        data,
    )


def _read_viz_wiz(data: Path) -> list[Item]:
    images = TaskImages(data, "val")
    unanswerable = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    return require_some(
        (
            Item(
                id=entry["image"],
                question=entry["question"] + unanswerable + WORD_SUFFIX,
                images=(images.find(entry["image"]),),
                expected=tuple(said["answer"] for said in entry["answers"]),
                category=entry["answer_type"],
            )
            for entry in read_json(data, "val.json", _VIZ_WIZ)
        ),
        data,
    )


def _read_gqa(data: Path) -> list[Item]:
    images = TaskImages(data, "images")
    entries = read_json(data, "testdev_balanced_questions.json", _GQA)
    return require_some(
        (
            Item(
                id=identity,
                question=entry["question"] + WORD_SUFFIX,
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

TASKS = (
    Task(
        "vqav2",
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
        partial(
            _read_coco_questions,
            questions="v2_OpenEnded_*val2014_questions.json",
            annotations="v2_*val2014_annotations.json",
        ),
        {"official": _by_form("official"), "lmms-eval": _by_form("normalized")},
        max_new_tokens=16,
        released=(214_354,),
    ),
    Task(
        "okvqa",
        "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/",
        partial(
            _read_coco_questions,
            questions="OpenEnded_*val2014_questions.json",
            annotations="mscoco_val2014_annotations.json",
        ),
        _LMMS_EVAL | {"official": _by_form("official")},
        max_new_tokens=16,
        released=(5_046,),
    ),
    Task(
        "textvqa",
        "TextVQA_0.5.1_val.json, train_images/",
        _read_text_vqa,
        _LMMS_EVAL,
        max_new_tokens=16,
        released=(5_000,),
    ),
    Task(
        "vizwiz", "val.json, val/", _read_viz_wiz, _LMMS_EVAL, max_new_tokens=16, released=(4_319,)
    ),
    Task(
        "gqa",
        "testdev_balanced_questions.json, images/",
        _read_gqa,
        {"lmms-eval": judge_each(lambda item, answer: float(is_equal(answer, item.expected[0])))},
        max_new_tokens=16,
        released=(12_578,),
    ),
)
"""VQAv2, OKVQA, TextVQA, VizWiz and GQA."""

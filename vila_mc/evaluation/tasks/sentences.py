"""COCO captions, Flickr30k and MM-Vet: answers in sentences."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import TypeAdapter

from vila_mc.evaluation.metrics.captions import caption_words, cider
from vila_mc.evaluation.tasks.files import TaskImages, read_json, require_some
from vila_mc.evaluation.tasks.task import Figure, Item, Task, mean_of

_CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
"""As lmms-eval asks; VILA published no other."""


class _Sentence(TypedDict):
    raw: str


class _Captioned(TypedDict):
    filename: str
    filepath: NotRequired[str]
    imgid: int
    split: str
    sentences: list[_Sentence]


class _Karpathy(TypedDict):
    images: list[_Captioned]


class _VetQuestion(TypedDict):
    imagename: str
    question: str


_KARPATHY = TypeAdapter(_Karpathy)
_VET = TypeAdapter(dict[str, _VetQuestion])


def _read_karpathy(data: Path, file: str, folder: str, split: str = "test") -> list[Item]:
    """A split of Karpathy's files."""
    images = TaskImages(data, folder)
    return require_some(
        (
            Item(
                id=str(entry["imgid"]),
                question=_CAPTION_PROMPT,
                images=(images.find(entry["filename"]),),
                expected=tuple(sentence["raw"] for sentence in entry["sentences"]),
            )
            for entry in read_json(data, file, _KARPATHY)["images"]
            if entry["split"] == split
        ),
        data,
    )


def judge_captions(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    """CIDEr-D, times 100 as papers print it."""
    references = [[caption_words(text) for text in item.expected] for item in items]
    return [mean_of("CIDEr", cider([caption_words(said) for said in answers], references))]


def _read_vet(data: Path) -> list[Item]:
    images = TaskImages(data, "images")
    return require_some(
        (
            Item(
                identity,
                entry["question"],
                (images.find(entry["imagename"]),),
                llava_id=identity.removeprefix("v1_"),  # which LLaVA's script puts in front
            )
            for identity, entry in read_json(data, "mm-vet.json", _VET).items()
        ),
        data,
    )


_COCO = partial(_read_karpathy, file="dataset_coco.json")
_FLICKR = partial(_read_karpathy, file="dataset_flickr30k.json", folder="flickr30k-images")

TASKS = (
    Task(
        "coco",
        "dataset_coco.json, val2014/",
        partial(_COCO, folder="val2014"),
        {"pycocoevalcap": judge_captions},
        max_new_tokens=64,
        released=(5_000,),
        shown=partial(_COCO, folder="train2014", split="train"),
    ),
    Task(
        "flickr30k",
        "dataset_flickr30k.json, flickr30k-images/",
        _FLICKR,
        {"pycocoevalcap": judge_captions},
        max_new_tokens=64,
        released=(1_000,),
        shown=partial(_FLICKR, split="train"),
    ),
    Task("mmvet", "mm-vet.json, images/", _read_vet, {}, max_new_tokens=512, released=(218,)),
)
"""COCO captions, Flickr30k and MM-Vet."""

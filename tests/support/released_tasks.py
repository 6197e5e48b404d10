"""Tiny files of each task, in the form in which they were released."""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def _picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour).save(path)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _coco_questions(data: Path, questions: str, annotations: str) -> None:
    asked, known = [], []
    for number, kind in enumerate(("other", "yes/no", "number")):
        _picture(data / f"val2014/COCO_val2014_{number + 7:012}.jpg")
        asked.append(dict(image_id=number + 7, question=f"What is {number}?", question_id=number))
        said = [{"answer": f"a {kind}", "answer_id": at} for at in range(1, 11)]
        known.append(dict(question_id=number, answers=said, answer_type=kind, question_type="what"))
    _json(data / questions, {"questions": asked, "info": {}})
    _json(data / annotations, {"annotations": known})


def vqav2(data: Path) -> None:
    _coco_questions(
        data,
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    )


def vqav2_test(data: Path) -> None:
    _picture(data / "test2015/COCO_test2015_000000000007.jpg")
    entry = dict(image_id=7, question="What is 0?", question_id=70)
    _json(data / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": [entry]})


def okvqa(data: Path) -> None:
    _coco_questions(
        data, "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    )


def textvqa(data: Path) -> None:
    _picture(data / "train_images/ab.jpg")
    entry = dict(image_id="ab", question="what brand?", question_id=34602, answers=["nokia"] * 10)
    _json(data / "TextVQA_0.5.1_val.json", {"data": [entry], "dataset_type": "val"})


def vizwiz(data: Path) -> None:
    _picture(data / "val/VizWiz_val_0.jpg")
    said = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    entry = dict(image="VizWiz_val_0.jpg", question="What is this?", answers=said)
    _json(data / "val.json", [entry | dict(answer_type="unanswerable", answerable=0)])


def vizwiz_test(data: Path) -> None:
    _picture(data / "test/VizWiz_test_0.jpg")
    _json(data / "test.json", [dict(image="VizWiz_test_0.jpg", question="what is This?")])


def gqa(data: Path) -> None:
    _picture(data / "images/n1.jpg")
    entry = dict(question="Is it red?", imageId="n1", answer="yes", isBalanced=True)
    _json(data / "testdev_balanced_questions.json", {"201307251": entry})


def pope(data: Path) -> None:
    _picture(data / "val2014/COCO_val2014_000000000001.jpg")
    for name in ("random", "popular", "adversarial"):
        lines = [
            json.dumps(
                dict(
                    question_id=number,
                    image="COCO_val2014_000000000001.jpg",
                    text=f"Is there a {name} snowboard in the image?",
                    label=label,
                )
            )
            for number, label in enumerate(("yes", "no"), start=1)
        ]
        path = data / f"coco/coco_pope_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


MME_CATEGORIES = (
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
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def mme(data: Path) -> None:
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for category in MME_CATEGORIES:
        folder = data / category
        has_folders = category in ("posters", "celebrity", "scene", "landmark", "artwork")
        _picture(folder / ("images/0001.jpg" if has_folders else "0001.png"))
        texts = folder / "questions_answers_YN" if has_folders else folder
        texts.mkdir(exist_ok=True)
        (texts / "0001.txt").write_text(lines)


def scienceqa(data: Path) -> None:
    _picture(data / "images/test/4/image.png")

    def turns(marker: str, answer: str) -> list[dict[str, str]]:
        asked = f"{marker}Context: N/A\nWhich?\nA. one\nB. two"
        return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]

    entries = [
        dict(id="4", image="4/image.png", conversations=turns("<image>\n", "B. two")),
        dict(id="5", conversations=turns("", "A. one")),
    ]
    _json(data / "llava_test_CQM-A.json", entries)


MMBENCH_ROWS = (
    ("241", "Which is it?", "a hint", "cat", "dog", "", "", "attribute", "B"),
    ("252", 'What "kind"?', "", "x", "y", "z", "w", "social", "A"),
)
MMBENCH_ROTATED = (
    *MMBENCH_ROWS,
    ("1000241", "Which is it?", "a hint", "dog", "cat", "", "", "attribute", "A"),
    ("1000252", 'What "kind"?', "", "y", "z", "w", "x", "social", "D"),
    ("2000252", 'What "kind"?', "", "z", "w", "x", "y", "social", "C"),
)
"""The same in other places, far behind the questions."""


def mmbench(data: Path, rows: Sequence[Sequence[str]] = MMBENCH_ROWS) -> None:
    header = ["index", "question", "hint", "A", "B", "C", "D", "category", "answer"]
    _mmbench(data / "mmbench_dev_20230712.tsv", [header, *rows])


def mmbench_test(data: Path) -> None:
    header = ["index", "question", "hint", "A", "B", "C", "D", "category"]
    _mmbench(data / "mmbench_test_20230712.tsv", [header, *(row[:-1] for row in MMBENCH_ROTATED)])


def _mmbench(path: Path, rows: Sequence[Sequence[str]]) -> None:
    pixels = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(pixels, "JPEG")
    image = base64.b64encode(pixels.getvalue()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        header, *others = rows
        writer.writerow([*header, "image", "source", "l2-category", "comment"])
        writer.writerows([*row, image, "web", "perception", ""] for row in others)


def seed(data: Path) -> None:
    _picture(data / "SEED-Bench-image/1454426_2591111986.png")
    entry = dict(
        question_id="101669",
        question="How many?",
        choice_a="one",
        choice_b="two",
        choice_c="three",
        choice_d="four",
        answer="C",
        data_id="1454426_2591111986.png",
        data_type="image",
        question_type_id=5,
    )
    video = entry | dict(question_id="v1", data_type="video", data_id="v.webm")
    _json(data / "SEED-Bench.json", {"questions": [entry, video], "question_type": {"Counting": 5}})


def _karpathy(data: Path, file: str, folder: str) -> None:
    entries = []
    for number, split in enumerate(("test", "train", "test")):
        _picture(data / folder / f"{number}.jpg")
        words = [{"raw": f"A dog number {number} runs.", "tokens": []}, {"raw": "A dog."}]
        entries.append(
            dict(filename=f"{number}.jpg", imgid=number, split=split, sentences=words, cocoid=9)
        )
    _json(data / file, {"images": entries, "dataset": "coco"})


def coco(data: Path) -> None:
    _karpathy(data, "dataset_coco.json", "val2014")


def flickr30k(data: Path) -> None:
    _karpathy(data, "dataset_flickr30k.json", "flickr30k-images")


def mmvet(data: Path) -> None:
    _picture(data / "images/v1_0.png")
    entry = dict(imagename="v1_0.png", question="What is x?", answer="-1", capability=["ocr"])
    _json(data / "mm-vet.json", {"v1_0": entry})


def mmlu(data: Path) -> None:
    for split, count in (("dev", 5), ("test", 2)):
        (data / split).mkdir(parents=True, exist_ok=True)
        rows = [[f"Q{n}, {split}?", "w", "x", "y", "z", "ABCD"[n % 4]] for n in range(count)]
        with (data / split / f"abstract_algebra_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def bbh(data: Path) -> None:
    _json(
        data / "bbh/boolean_expressions.json",
        {"canary": "x", "examples": [{"input": "not True is", "target": "False"}]},
    )
    (data / "cot-prompts").mkdir(parents=True, exist_ok=True)
    (data / "cot-prompts/boolean_expressions.txt").write_text(
        "canary\n-----\nEvaluate.\n\nQ: True is\nA: Let's think step by step.\nSo the answer is "
        "True.\n"
    )


def drop(data: Path) -> None:
    date = dict(day="", month="", year="")
    answers = [
        dict(number="3", date=date, spans=[]),
        dict(number="", date=date, spans=["Bears", "Lions"]),
        dict(number="", date=dict(day="4", month="May", year="1999"), spans=[]),
    ]
    pair = dict(query_id="q1", question="How many?", answer=answers[0])
    _json(
        data / "drop_dataset_dev.json",
        {"nfl_1": {"passage": "They won.", "qa_pairs": [pair | {"validated_answers": answers}]}},
    )


RELEASED: dict[str, Callable[[Path], None]] = {
    write.__name__: write
    for write in (
        vqav2,
        vqav2_test,
        okvqa,
        textvqa,
        vizwiz,
        vizwiz_test,
        gqa,
        scienceqa,
        mmbench,
        mmbench_test,
        seed,
        pope,
        mme,
        coco,
        flickr30k,
        mmvet,
        mmlu,
        bbh,
        drop,
    )
}
"""By task: writes its files into a folder."""


SHOWN = 9
"""Questions of each training split."""


def _coco_training(data: Path, questions: str, annotations: str) -> None:
    asked, known = [], []
    for number in range(SHOWN):
        _picture(data / f"train2014/COCO_train2014_{number + 50:012}.jpg", f"#0000{number + 16:x}")
        words = f"How many {number}?"
        asked.append(dict(image_id=number + 50, question=words, question_id=900 + number))
        said = [{"answer": f"{number} of them"}, *[{"answer": "none"}] * 9]
        known.append(dict(question_id=900 + number, answers=said, answer_type="number"))
    _json(data / questions, {"questions": asked})
    _json(data / annotations, {"annotations": known})


def _vqav2_training(data: Path) -> None:
    _coco_training(
        data,
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_mscoco_train2014_annotations.json",
    )


def _okvqa_training(data: Path) -> None:
    _coco_training(
        data, "OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"
    )


def _textvqa_training(data: Path) -> None:
    entries = []
    for number in range(SHOWN):
        _picture(data / f"train_images/t{number}.jpg", f"#0000{number + 16:x}")
        words = dict(image_id=f"t{number}", question=f"How many {number}?", question_id=number)
        entries.append(words | {"answers": [f"{number} of them", *["none"] * 9]})
    _json(data / "TextVQA_0.5.1_train.json", {"data": entries})


def textvqa_ocr(data: Path) -> None:
    """What Rosetta read in the images of both splits."""
    seen = dict(image_id="ab", ocr_tokens=["NOKIA", "3310"], ocr_info=[], set_name="val")
    _json(data / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [seen]})
    tokens = [dict(image_id=f"t{number}", ocr_tokens=[str(number)]) for number in range(SHOWN)]
    _json(data / "TextVQA_Rosetta_OCR_v0.2_train.json", {"data": tokens})


def _vizwiz_training(data: Path) -> None:
    entries = []
    for number in range(SHOWN):
        _picture(data / f"train/{number}.jpg", f"#0000{number + 16:x}")
        said = [{"answer": f"{number} of them"}, *[{"answer": "none"}] * 9]
        words = dict(image=f"{number}.jpg", question=f"How many {number}?", answer_type="other")
        entries.append(words | {"answers": said})
    _json(data / "train.json", entries)


def _gqa_training(data: Path) -> None:
    entries = {}
    for number in range(SHOWN):
        _picture(data / f"images/t{number}.jpg", f"#0000{number + 16:x}")
        words = dict(question=f"How many {number}?", imageId=f"t{number}")
        entries[str(number)] = words | {"answer": f"{number} of them"}
    _json(data / "train_balanced_questions.json", entries)


def _scienceqa_training(data: Path) -> None:
    entries = []
    for number in range(SHOWN):
        _picture(data / f"images/train/{number}/image.png", f"#0000{number + 16:x}")
        asked = f"<image>\nContext: N/A\nHow many {number}?\nA. one\nB. two"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "A. one"}]
        entries.append(dict(id=f"{number}", image=f"{number}/image.png", conversations=turns))
    _json(data / "llava_train_CQM-A.json", entries)


def _karpathy_training(data: Path, file: str, folder: str) -> None:
    """Beside the test split, in the same file."""
    held = json.loads((data / file).read_text())
    held["images"] = [entry for entry in held["images"] if entry["split"] != "train"]
    for number in range(SHOWN):
        _picture(data / folder / f"t{number}.jpg", f"#0000{number + 16:x}")
        words = [{"raw": f"{number} of them. "}, {"raw": "A dog."}]
        entry = dict(filename=f"t{number}.jpg", imgid=50 + number, split="train", sentences=words)
        held["images"].append(entry | {"filepath": folder})
    _json(data / file, held)


TRAINING: dict[str, Callable[[Path], None]] = {
    "vqav2": _vqav2_training,
    "vqav2_test": _vqav2_training,
    "okvqa": _okvqa_training,
    "textvqa": _textvqa_training,
    "vizwiz": _vizwiz_training,
    "vizwiz_test": _vizwiz_training,
    "gqa": _gqa_training,
    "scienceqa": _scienceqa_training,
    "coco": lambda data: _karpathy_training(data, "dataset_coco.json", "train2014"),
    "flickr30k": lambda data: _karpathy_training(
        data, "dataset_flickr30k.json", "flickr30k-images"
    ),
}
"""By task: writes the files of its training split beside the others."""

"""What benchmarks/public_harnesses.py asks, from what a quickstart left: a TextVQA and an MMLU.

Questions about held-out digits are written as TextVQA was released and as a table that the
harnesses read, sums in four choices as MMLU was released and as JSON Lines.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_PEOPLE = 10
_SHOWN = 5
_LETTERS = "ABCD"

_LMMS_TEXTVQA = """\
include: {home}/tasks/textvqa/textvqa_val.yaml
task: local_textvqa
dataset_path: parquet
dataset_kwargs:
  data_files: {{validation: {folder}/textvqa.parquet}}
"""
"""lmms-eval's own task."""
_LM_MMLU = """\
include: {home}/tasks/mmlu/default/_default_template_yaml
task: local_mmlu
description: "The following are multiple choice questions (with answers) about sums.\\n\\n"
dataset_path: json
dataset_kwargs:
  data_files: {{dev: {folder}/mmlu-dev.jsonl, test: {folder}/mmlu-test.jsonl}}
"""
"""lm-eval's own task."""
_LM_TEXTVQA = """\
task: local_textvqa
dataset_path: parquet
dataset_kwargs:
  data_files: {{validation: {folder}/textvqa.parquet}}
test_split: validation
output_type: generate_until
doc_to_image: [image]
doc_to_text: "<image>\\n{{{{question}}}}\\nAnswer the question using a single word or phrase."
doc_to_target: "{{{{answers[0]}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 16, do_sample: false, temperature: 0.0}}
metric_list: [{{metric: exact_match, ignore_case: true}}]
"""
"""lm-eval has no TextVQA."""


def write_all(quickstart: Path, folder: Path, homes: dict[str, Path], count: int) -> None:
    """Write ``count`` questions of each kind in every form, and the tasks of the harnesses.

    Args:
        quickstart: output of examples/quickstart.sh.
        folder: where to.
        homes: folder of each harness's package, by its name.
        count: questions.
    """
    _write_textvqa(quickstart / "raw", folder, count)
    _write_mmlu(folder, count)
    for harness, name, text in (
        ("lmms_eval", "textvqa", _LMMS_TEXTVQA),
        ("lm_eval", "mmlu", _LM_MMLU),
        ("lm_eval", "textvqa", _LM_TEXTVQA),
    ):
        file = folder / harness / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.format(home=homes[harness], folder=folder))


def _write_textvqa(raw: Path, folder: Path, count: int) -> None:
    shown = [json.loads(line) for line in (raw / "eval.jsonl").read_text().splitlines()]
    shown = [one for one in shown if one["task"] == "which_digit"][:count]
    (folder / "textvqa/train_images").mkdir(parents=True, exist_ok=True)
    released, rows = [], []
    for number, item in enumerate(shown, start=1):
        (picture,) = item["images"]
        data = _as_jpeg(raw / "images" / picture)
        (folder / f"textvqa/train_images/{number}.jpg").write_bytes(data)
        question, answer = _about(int(item["answer"]), number)
        entry = {"question_id": number, "question": question, "answers": [answer] * _PEOPLE}
        released.append({**entry, "image_id": str(number)})
        rows.append({**entry, "image": {"bytes": data, "path": f"{number}.jpg"}})
    (folder / "textvqa/TextVQA_0.5.1_val.json").write_text(json.dumps({"data": released}))
    table = pa.Table.from_pylist(rows)
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "question_id": {"dtype": "int64", "_type": "Value"},
        "question": text,
        "answers": {"feature": text, "_type": "List"},
        "image": {"_type": "Image"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "textvqa.parquet")


def _about(digit: int, number: int) -> tuple[str, str]:
    """One of the quickstart's own questions about a picture, and the answer."""
    claimed = (digit + number % 2) % len(_WORDS)
    return (
        ("Which digit is this?", str(digit)),
        ("Write this digit as a word.", _WORDS[digit]),
        (f"Is this the digit {claimed}?", "Yes" if claimed == digit else "No"),
    )[number % 3]


def _as_jpeg(picture: Path) -> bytes:
    """As TextVQA's are."""
    file = io.BytesIO()
    Image.open(picture).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def _write_mmlu(folder: Path, count: int) -> None:
    random_ = random.Random(1)
    for split, number in (("dev", _SHOWN), ("test", count)):
        questions = [_sum(random_) for _ in range(number)]
        released = folder / f"mmlu/{split}/sums_{split}.csv"
        released.parent.mkdir(parents=True, exist_ok=True)
        with released.open("w", newline="") as file:
            rows = ([text, *choices, _LETTERS[place]] for text, choices, place in questions)
            csv.writer(file).writerows(rows)
        lines = [
            json.dumps({"question": text, "choices": choices, "answer": place})
            for text, choices, place in questions
        ]
        (folder / f"mmlu-{split}.jsonl").write_text("\n".join(lines) + "\n")


def _sum(random_: random.Random) -> tuple[str, Sequence[str], int]:
    """A question, its choices, and the place of the right one."""
    first, second = random_.randrange(10), random_.randrange(10)
    others: list[Any] = [value for value in range(19) if value != first + second]
    choices = random_.sample(others, len(_LETTERS) - 1)
    place = random_.randrange(len(_LETTERS))
    choices.insert(place, first + second)
    return f"{first} + {second} =", [str(choice) for choice in choices], place

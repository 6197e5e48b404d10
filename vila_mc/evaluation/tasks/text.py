"""MMLU, BBH and DROP: what a language model knows, without images and chat templates."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.metrics.texts import drop_score
from vila_mc.evaluation.tasks.files import read_json, read_table, read_text, require_some
from vila_mc.evaluation.tasks.task import Figure, Item, Judge, Task, judge_each

_LETTERS = "ABCD"
_SHOTS = 5
_ANSWER_IS = re.compile(r"(?<=the answer is )(.*)(?=.)")


class _Example(TypedDict):
    input: str
    target: str


class _Examples(TypedDict):
    examples: list[_Example]


class _Date(TypedDict):
    day: str
    month: str
    year: str


class _DropAnswer(TypedDict):
    number: str
    date: _Date
    spans: list[str]


class _DropPair(TypedDict):
    query_id: str
    question: str
    answer: _DropAnswer
    validated_answers: list[_DropAnswer]


class _Passage(TypedDict):
    passage: str
    qa_pairs: list[_DropPair]


_EXAMPLES = TypeAdapter(_Examples)
_DROP = TypeAdapter(dict[str, _Passage])


def _read_mmlu(data: Path) -> list[Item]:
    """Every subject, behind its five questions of dev/ with their answers."""
    found = []
    for file in sorted((data / "test").glob("*_test.csv")):
        subject = file.name.removesuffix("_test.csv")
        shown = _subject_rows(data, f"dev/{subject}_dev.csv")
        if len(shown) != _SHOTS:
            raise DataError(
                f"{data}/dev/{subject}_dev.csv holds {len(shown)} questions, not {_SHOTS}. Give "
                "the file as it was released."
            )
        topic = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        head += "".join(f"{_asked(row)} {row[5]}\n\n" for row in shown)
        for number, row in enumerate(_subject_rows(data, f"test/{file.name}")):
            found.append(
                Item(
                    id=f"{subject}/{number}",
                    question=head + _asked(row),
                    expected=(row[5],),
                    category=subject,
                    choices={letter: f" {letter}" for letter in _LETTERS},
                )
            )
    return require_some(found, data / "test")


def _subject_rows(data: Path, name: str) -> list[list[str]]:
    rows = read_table(data, name, ",")
    for number, row in enumerate(rows, start=1):
        if len(row) != 6 or row[5] not in _LETTERS:
            raise DataError(
                f"{data / name}: row {number} is not a question, four choices and a letter. Give "
                "the file as it was released."
            )
    return rows


def _asked(row: list[str]) -> str:
    choices = "".join(
        f"\n{letter}. {text}" for letter, text in zip(_LETTERS, row[1:5], strict=True)
    )
    return f"{row[0].strip()}{choices}\nAnswer:"


def _read_bbh(data: Path) -> list[Item]:
    """Every task, behind its three examples with a chain of thought."""
    found = []
    for file in sorted((data / "bbh").glob("*.json")):
        prompt = read_text(data, f"cot-prompts/{file.stem}.txt")
        shown = prompt.partition("-----\n")[2].strip()  # behind a line for those who filter data
        if "\nA: " not in shown:
            raise DataError(
                f"{data}/cot-prompts/{file.stem}.txt holds no example behind its line of dashes. "
                "Give the file as it was released."
            )
        for number, example in enumerate(
            read_json(data, f"bbh/{file.name}", _EXAMPLES)["examples"]
        ):
            found.append(
                Item(
                    id=f"{file.stem}/{number}",
                    question=f"{shown}\n\nQ: {example['input']}\nA: Let's think step by step.\n",
                    expected=(example["target"],),
                    category=file.stem,
                )
            )
    return require_some(found, data / "bbh")


def _judge_bbh(item: Item, answer: str) -> float:
    said = _ANSWER_IS.search(answer)
    return float(said is not None and said[1].strip() == item.expected[0])


def _read_drop(data: Path) -> list[Item]:
    found = []
    for passage in read_json(data, "drop_dataset_dev.json", _DROP).values():
        for pair in passage["qa_pairs"]:
            answers = {
                _spans(answer): None for answer in (pair["answer"], *pair["validated_answers"])
            }
            found.append(
                Item(
                    id=pair["query_id"],
                    question=f"{passage['passage']} {pair['question']}",
                    expected=tuple("\x1f".join(spans) for spans in answers),
                )
            )
    return require_some(found, data)


def _spans(answer: _DropAnswer) -> tuple[str, ...]:
    if answer["number"]:
        return (answer["number"],)
    date = answer["date"]
    return tuple(answer["spans"]) or (" ".join((date["day"], date["month"], date["year"])).strip(),)


def _judge_drop(which: int, name: str) -> Judge:
    return judge_each(
        lambda item, said: drop_score([said], [text.split("\x1f") for text in item.expected])[
            which
        ],
        name,
    )


def _judge_drop_both(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    return [*_judge_drop(1, "F1")(items, answers), *_judge_drop(0, "exact match")(items, answers)]


TASKS = (
    Task(
        "mmlu",
        "dev/*_dev.csv, test/*_test.csv",
        _read_mmlu,
        {"lm-eval": judge_each(lambda item, said: said == item.expected[0])},
        max_new_tokens=1,
        released=(14_042,),
        asks="letter",
        is_text=True,
    ),
    Task(
        "bbh",
        "bbh/*.json, cot-prompts/*.txt",
        _read_bbh,
        {"lm-eval": judge_each(_judge_bbh)},
        max_new_tokens=1024,
        released=(6_511,),
        is_text=True,
        stops=("Q", "\n\n"),
    ),
    Task(
        "drop",
        "drop_dataset_dev.json",
        _read_drop,
        {"lm-eval": _judge_drop_both},
        max_new_tokens=256,
        released=(9_536,),
        is_text=True,
        stops=(".",),
    ),
)
"""MMLU, BBH and DROP."""

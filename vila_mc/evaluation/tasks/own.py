"""A task of one's own: a JSON Lines file of questions with what is right."""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Required, TypedDict

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from vila_mc.data.turns import asked
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.metrics.human_answers import human_accuracy
from vila_mc.evaluation.metrics.texts import anls, words
from vila_mc.evaluation.tasks.files import TaskImages, read_json_lines
from vila_mc.evaluation.tasks.sentences import judge_captions
from vila_mc.evaluation.tasks.task import (
    LETTER_SUFFIX,
    TEXT_FORMS,
    Figure,
    Form,
    Item,
    Judge,
    Task,
    judge_each,
)

Weighed = Literal["letters", "texts", "texts_per_character"]
"""Which continuations the likeliest is of: the letter of each choice, listed behind the question;
or its text, behind the question alone, as a whole or divided by its characters (lm-eval's ``acc``
and ``acc_norm``)."""

_Text = Annotated[str, Field(min_length=1)]
_MAX_NEW_TOKENS = 16
_PEOPLE = 10
"""Answers to a question that the accuracy of VQA is defined over."""


@with_config(ConfigDict(extra="forbid"))
class _Line(TypedDict, total=False):
    id: str | int
    question: Required[_Text]
    answers: Annotated[list[_Text], Field(min_length=1)]
    choices: Annotated[list[_Text], Field(min_length=2, max_length=26)]
    answer: _Text
    images: list[str]
    category: str
    group: str
    split: Literal["test", "train"]


_LINE = TypeAdapter(_Line)
_HINT = "docs/evaluation.md has the form of a task's lines."


@dataclass(frozen=True, slots=True)
class OwnTask:
    """Where a task of one's own lies, and how it is asked."""

    file: Path
    images: Path
    """Folder of its images."""
    follow_links: bool = False
    """Whether a link in that folder may lead out of it."""
    form: Form = "chat"
    weigh: Weighed = "letters"
    """Of questions with choices."""


def own_task(own: OwnTask) -> Task:
    """A file as a task.

    Raises:
        DataError: it is missing, a line is no question, or an image is not there.
    """
    lines = read_json_lines(own.file.parent, own.file.name, _LINE, _HINT)
    items: dict[str, list[Item]] = {"test": [], "train": []}
    images = None
    if any(line.get("images") for line in lines):
        images = TaskImages(own.images, ".", follow_links=own.follow_links)
    for number, line in enumerate(lines, start=1):
        try:
            item = _item(line, str(line.get("id", number)), images, own)
        except DataError as error:
            raise DataError(f"question {number} of {own.file}: {error}") from None
        items[line.get("split", "test")].append(item)
    every = items["test"] + items["train"]
    twice = [identity for identity, count in Counter(i.id for i in every).items() if count > 1]
    if twice:
        raise DataError(
            f"{own.file} holds the id {twice[0]} twice. Give each line its own, or none."
        )
    has_choices = {bool(item.choices) for item in every}
    if len(has_choices) > 1:
        raise DataError(
            f"{own.file} holds questions with choices and without, which are not measured alike. "
            "Make two files of them."
        )
    if not items["test"]:
        raise DataError(f"{own.file} holds demonstrations alone (split train). Add questions.")
    return Task(
        name=own.file.stem,
        files=own.file.name,
        read=partial(_given, items["test"]),
        shown=partial(_given, items["train"]) if items["train"] else None,
        judges=_CHOSEN if has_choices == {True} else _ANSWERED,
        max_new_tokens=_MAX_NEW_TOKENS,
        asks="letter" if has_choices == {True} else "answer",
        per_character=own.weigh == "texts_per_character",
        is_text=own.form in TEXT_FORMS,
        stops=("\n",) if own.form in TEXT_FORMS else (),
    )


def _given(items: list[Item], _: Path) -> list[Item]:
    return items


def _item(line: _Line, identity: str, images: TaskImages | None, own: OwnTask) -> Item:
    """Raises DataError."""
    if ("choices" in line) != ("answer" in line) or ("choices" in line) == ("answers" in line):
        raise DataError(f"it needs answers, or choices and the answer among them. {_HINT}")
    names = line.get("images", [])
    words = question = line["question"]
    right = tuple(line.get("answers", ()))
    choices: dict[str, str] = {}
    if "choices" in line:
        words, question, choices = _with_choices(words, line["choices"], own)
        if line["choices"].count(line["answer"]) != 1:
            raise DataError(f"its answer {line['answer'][:80]!r} is not one of its choices.")
        right = (string.ascii_uppercase[line["choices"].index(line["answer"])],)
    asked(question, len(names))
    return Item(
        id=identity,
        question=question,
        words=words,
        images=tuple(images.find(name) for name in names) if images else (),
        expected=right,
        category=line.get("category", ""),
        group=line.get("group", ""),
        choices=choices,
    )


def _with_choices(
    question: str, texts: Sequence[str], own: OwnTask
) -> tuple[str, str, dict[str, str]]:
    """The question, the same with how to answer it, and the continuations by letter."""
    space = " " if own.form in TEXT_FORMS else ""
    letters = string.ascii_uppercase[: len(texts)]
    if own.weigh != "letters":
        return question, question, {a: space + text for a, text in zip(letters, texts, strict=True)}
    listed = [question, *(f"{a}. {text}" for a, text in zip(letters, texts, strict=True))]
    words = "\n".join(listed)
    end = "\nAnswer:" if own.form in TEXT_FORMS else LETTER_SUFFIX
    return words, words + end, {letter: space + letter for letter in letters}


def _judge_chosen(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    figures = judge_each(lambda item, said: float(said == item.expected[0]))(items, answers)
    chance = 100 * sum(1 / len(item.choices) for item in items) / len(items)
    return [*figures, Figure("chance", chance, len(items))]


def _judge_as_people(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
    for item in items:
        if len(item.expected) != _PEOPLE:
            raise ConfigError(
                f"question {item.id} has {len(item.expected)} answers, and vqa compares with those "
                f"of {_PEOPLE} people. Take another judge.",
                option="judge",
            )
    return judge_each(lambda item, said: human_accuracy(said, item.expected, "evalai"))(
        items, answers
    )


def _judge_in(form: Callable[[str], str]) -> Judge:
    """Right is what reads as one of the answers does in a form; chance is the best that one answer
    to all questions would be."""
    accuracy = judge_each(lambda item, said: form(said) in {form(right) for right in item.expected})

    def judge(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
        right = Counter(one for item in items for one in {form(text) for text in item.expected})
        chance = 100 * max(right.values()) / len(items)
        return [*accuracy(items, answers), Figure("chance", chance, len(items))]

    return judge


def _exact(text: str) -> str:
    return text.strip().lower()


_CHOSEN: dict[str, Judge] = {"likeliest": _judge_chosen}
_ANSWERED: dict[str, Judge] = {
    "exact": _judge_in(_exact),
    "words": _judge_in(words),
    "anls": judge_each(lambda item, said: anls(said, item.expected), "ANLS"),
    "vqa": _judge_as_people,
    "cider": judge_captions,
}

"""What a public task is to us: items read from its files, and judges of answers to them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

from vila_mc.flow import RawImage

WORD_SUFFIX = "\nAnswer the question using a single word or phrase."
LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
"""What LLaVA and VILA write behind questions whose answers are short."""


Form = Literal["chat", "flamingo", "text", "interleaved"]
"""How a prompt is written: as a user's turn in the chat template; as open_flamingo does; as a text
to go on with, an empty line between demonstrations; or the same in one paragraph, as sentences
stand among images in documents of pre-training."""
TEXT_FORMS: tuple[Form, ...] = ("text", "interleaved")
"""Those that a model goes on with as it does with a text."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task."""

    id: str
    question: str
    """As it is put to the model; the images stand in front of it."""
    images: tuple[RawImage, ...] = ()
    expected: tuple[str, ...] = ()
    """Right answers as the task has them; none where they are not released."""
    category: str = ""
    pair: str = ""
    """What items that count together, and stand in a row, have in common, as the two questions
    about an MME image; none where each counts alone."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Letter -> text, in order."""
    words: str = ""
    """The question without how to answer it; none where a picture is to be described."""
    llava_id: int | str | None = None
    """What LLaVA's scripts call it, where that is not ``id``."""
    llava_prompt: str = ""
    """What LLaVA's scripts read as its prompt, where that is not ``question``."""
    group: str = ""
    """What the items that are shown with it have in common; none where all may be."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a task is measured by."""

    name: str
    value: float
    """In the task's own unit: mostly percent."""
    count: int
    """Items that it is over."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval, where the value is a mean over items."""


Judge = Callable[[Sequence[Item], Sequence[str]], list[Figure]]
"""From items and an answer to each to the figures, the task's own first."""


@dataclass(frozen=True, slots=True)
class Task:
    """A public task.

    ``read`` raises DataError where its files are missing, damaged or not those of the task.
    """

    name: str
    files: str
    """What the folder of its data holds, for people."""
    read: Callable[[Path], list[Item]]
    judges: Mapping[str, Judge]
    """By the name of the public code that each equals; the first is the default. Empty where
    answers are judged elsewhere."""
    max_new_tokens: int
    """Longest answer."""
    released: tuple[int, ...] = ()
    """Items of the files as they were released, where that is known: other numbers are said."""
    asks: Literal["answer", "letter"] = "answer"
    """Whether the model answers, or the likeliest letter is taken."""
    per_character: bool = False
    """Whether that is by log-likelihood per character of its text."""
    is_text: bool = False
    """Whether the question is a text to go on with, as language models are asked, rather than a
    user's turn in the chat template."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer, besides what ended those of training."""
    shown: Callable[[Path], list[Item]] | None = None
    """Reads the items of the training split, which demonstrations are drawn from."""
    with_ocr: "Task | None" = None
    """The same with the OCR tokens of an image behind the question."""
    asked_as: str = ""
    """Public code whose prompt it is, where there are several."""
    prompts: Mapping[str, "Task"] = field(default_factory=dict)
    """The same by the name of the public code whose prompt it is; the first is the default."""


def with_prompts(llava: Task, lmms_eval: Task) -> Task:
    """A task that two public codes ask in different words."""
    prompts = {
        name: replace(
            task,
            asked_as=name,
            with_ocr=task.with_ocr and replace(task.with_ocr, asked_as=name),
        )
        for name, task in (("llava", llava), ("lmms-eval", lmms_eval))
    }
    return replace(prompts["llava"], prompts=prompts)


def mean_of(name: str, scores: Sequence[float], scale: float = 100.0) -> Figure:
    """A mean with its confidence interval; none for a single item.

    The interval is that of a normal distribution; where all are right or all are wrong, which would
    leave none, Wilson's.
    """
    mean, number = fmean(scores), len(scores)
    if number < 2:
        return Figure(name, scale * mean, number)
    spread = 1.96 * pstdev(scores) / math.sqrt(number - 1)
    interval = (scale * (mean - spread), scale * (mean + spread))
    if not spread and mean in (0, 1):
        least = number / (number + 1.96**2)
        interval = (scale * least, scale) if mean else (0.0, scale * (1 - least))
    return Figure(name, scale * mean, number, interval)


def judge_each(score: Callable[[Item, str], float], name: str = "accuracy") -> Judge:
    """The mean over all items, and over those of each category where there are several."""

    def judge(items: Sequence[Item], answers: Sequence[str]) -> list[Figure]:
        scores = [score(item, answer) for item, answer in zip(items, answers, strict=True)]
        figures = [mean_of(name, scores)]
        groups: dict[str, list[float]] = {}
        for item, value in zip(items, scores, strict=True):
            groups.setdefault(item.category, []).append(value)
        if len(groups) > 1:
            figures += [mean_of(category, group) for category, group in sorted(groups.items())]
        return figures

    return judge

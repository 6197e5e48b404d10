"""Exact-match accuracy on questions about images, with the chance level beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vila_mc.data.chat_templates import Template, TemplateName, prompt
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.evaluation.generate import generate
from vila_mc.flow import RawImage
from vila_mc.model.vila_model import VilaModel


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its right answer."""

    id: str
    task: str
    """Questions of one task are counted together."""
    images: tuple[str, ...]
    """Names of image files, in order."""
    question: str
    answer: str
    """The right answer, as it must be given."""
    chance: float
    """Accuracy of an answer that does not look, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question and what the model said."""

    question: Question
    said: str

    @property
    def task(self) -> str:
        """Name of the question's task."""
        return self.question.task

    @property
    def chance(self) -> float:
        """Chance level of the question."""
        return self.question.chance

    @property
    def is_correct(self) -> bool:
        """Whether the answer is exactly the right one, spaces around it and case aside."""
        return self.said.strip().lower() == self.question.answer.strip().lower()


def read_questions(path: Path, images: Path) -> list[Question]:
    """Read a JSON Lines file of questions; every image named must exist in ``images``.

    Raises:
        DataError: the file or an image is missing, or a line is not a question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the questions {path} cannot be read: {error}.") from None
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(_parse(line, f"{path}:{number}"))
    if not questions:
        raise DataError(f"{path} holds no question. Give one JSON object per line.")
    for question in questions:
        for name in question.images:
            if not (images / name).is_file():
                raise DataError(
                    f"question {question.id} of {path} names {name}, which is not in {images}. "
                    "Give the folder of the images.",
                    option="images",
                )
    return questions


def ask(
    model: VilaModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    images: Path,
    *,
    template: Template | TemplateName = "vicuna_v1",
    max_new_tokens: int = 8,
    batch: int = 32,
) -> Iterator[Answer]:
    """Put every question to the model, greedily; yields answers in order."""
    for start in range(0, len(questions), batch):
        chunk = questions[start : start + batch]
        prompts = [
            prompt(
                template,
                question.question,
                [RawImage(source=images / name, name=name) for name in question.images],
            )
            for question in chunk
        ]
        answers = generate(model, tokenizer, prompts, max_new_tokens)
        for question, ids in zip(chunk, answers, strict=True):
            text = [token for token in ids if token != tokenizer.eos_id]
            yield Answer(question, tokenizer.decode(text).strip())


def answer_record(answer: Answer) -> dict[str, Any]:
    """Plain values of an answer, for a JSON Lines file."""
    return {**asdict(answer.question), "said": answer.said, "is_correct": answer.is_correct}


def _parse(line: str, where: str) -> Question:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where} is not a JSON object.")
    return _question(values, where)


def _question(values: Mapping[str, Any], where: str) -> Question:
    try:
        return Question(
            id=str(values["id"]),
            task=str(values["task"]),
            images=tuple(values["images"]),
            question=str(values["question"]),
            answer=str(values["answer"]),
            chance=float(values["chance"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{where} is not a question ({what}). It needs id, task, "
            "images, question, answer and chance."
        ) from None

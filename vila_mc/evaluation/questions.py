"""Questions from a file, what a model answers, and which answers are exactly right."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vila_mc.data.chat_templates import AnyTemplate, TemplateName, prompt
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import asked
from vila_mc.errors import DataError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.sharing import Sharing, length_of
from vila_mc.foreign_files import ForeignFileError, read_foreign
from vila_mc.model.vila_model import VilaModel

_LARGEST_BYTES = 1 << 28
"""Of a file of questions, which is read at once."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, with its right answer where that is known."""

    id: str
    task: str
    """Questions of one task are counted together."""
    images: tuple[str, ...]
    """Names of image files, in order."""
    question: str
    expected: str | None = None
    """The right answer, as it must be given."""
    chance: float | None = None
    """Accuracy of an answer that does not look, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question and what the model answered."""

    question: Question
    answer: str
    is_cut: bool = False
    """Whether it would have gone on: the most tokens allowed came without an end."""

    @property
    def task(self) -> str:
        """Name of the question's task."""
        return self.question.task

    @property
    def chance(self) -> float | None:
        """Chance level of the question."""
        return self.question.chance

    @property
    def is_correct(self) -> bool | None:
        """Whether the answer is exactly the expected one, spaces around it and case aside; None
        where no answer is expected."""
        if self.question.expected is None:
            return None
        return self.answer.strip().lower() == self.question.expected.strip().lower()


def read_questions(path: Path, images: Path, *, follow_links: bool = False) -> list[Question]:
    """Read a JSON Lines file of questions.

    The right answer stands under ``answer``, or under ``expected``, as in a file of answers; where
    both stand, ``answer`` is what some model answered.

    Args:
        path: one object a line: id, task and question; images, answer and chance where there are
            any.
        images: folder in which every image that is named must lie.
        follow_links: whether a link in that folder may lead out of it.

    Raises:
        DataError: the file or an image is missing, a line is not a question, one comes twice, or a
            name leads out of the folder.
    """
    try:
        # Not splitlines: characters that end a line for Unicode may stand within a JSON text.
        lines = read_foreign(path, _LARGEST_BYTES).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the questions {path} cannot be read: {error}.") from None
    except ForeignFileError as error:
        raise DataError(
            f"{path} {error}. Give a file of questions, one JSON object a line."
        ) from None
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(_parse(line, f"{path}:{number}"))
    if not questions:
        raise DataError(f"{path} holds no question. Give one JSON object per line.")
    folder = ImageFolder(images, follow_links)
    seen: set[tuple[str, str]] = set()
    for question in questions:
        if (question.task, question.id) in seen:
            raise DataError(
                f"{path} holds question {question.id} of task {question.task} twice, which would "
                "count twice. Give each an id of its own, or remove one."
            )
        seen.add((question.task, question.id))
        try:
            asked(question.question, len(question.images))
        except DataError as error:
            raise DataError(f"question {question.id} of {path}: {error}") from None
        for name in question.images:
            _require_image(folder, name, f"question {question.id} of {path}")
    return questions


def ask(
    model: VilaModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    images: Path,
    *,
    template: AnyTemplate | TemplateName = "vicuna_v1",
    max_new_tokens: int = 8,
    batch: int = 32,
    follow_links: bool = False,
    choice: Choice = GREEDY,
) -> Iterator[Answer]:
    """Put every question to the model.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        questions: whose images lie in ``images``.
        images: folder of the images.
        template: chat template that the model was trained with.
        max_new_tokens: longest answer.
        batch: questions that are answered together.
        follow_links: whether a link in the folder may lead out of it.
        choice: how the tokens of answers are chosen.

    Yields:
        The answers, in the order of the questions.

    Raises:
        ConfigError: a question and its answer do not fit the model's positions.
        DataError: an image is missing or cannot be decoded.
    """
    folder = ImageFolder(images, follow_links)
    end = AnswerEnd.of(template, tokenizer)
    for start in range(0, len(questions), batch):
        chunk = questions[start : start + batch]
        prompts = [
            prompt(template, question.question, [folder.find(name) for name in question.images])
            for question in chunk
        ]
        answers = generate(model, tokenizer, prompts, max_new_tokens, end, choice)
        for question, ids in zip(chunk, answers, strict=True):
            yield Answer(question, end.words(ids), is_cut=not end.is_reached(ids))


def sharing_of(model: VilaModel, batch: int) -> Sharing[Question]:
    """How copies of a model share questions, ``batch`` at a time."""
    shape = model.run_config.model
    return Sharing(
        batch,
        length=lambda one: length_of(one, shape),
        name=lambda one: f"{one.task} {one.id}",
    )


def answer_record(answer: Answer) -> dict[str, Any]:
    """Plain values of an answer, for a JSON Lines file."""
    said = {"answer": answer.answer, "is_correct": answer.is_correct, "is_cut": answer.is_cut}
    return asdict(answer.question) | said


def _require_image(folder: ImageFolder, name: str, who: str) -> None:
    try:
        is_there = folder.has(name)
    except RejectionError as error:
        raise DataError(f"{who} names an image that cannot be used: {error}.") from None
    if not is_there:
        raise DataError(
            f"{who} names {name}, which is not in {folder.root}. Give the folder of the images.",
            option="images",
        )


def _parse(line: str, where: str) -> Question:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where} is not a JSON object.")
    try:
        return _question(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{where} is not a question ({what}). It needs id, task and question, and may have "
            "images, answer and chance. A file of a task of your own is given as the task."
        ) from None


def _question(values: Mapping[str, Any]) -> Question:
    """Raises KeyError, TypeError, ValueError or OverflowError."""
    images, chance = values.get("images", []), values.get("chance")
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise TypeError(f"images is {str(images)[:80]}, not a list of file names")
    if "image" in values and "images" not in values:
        raise ValueError("image is no key of a question, images is")
    if chance is not None and not 0 <= (chance := float(chance)) <= 1:
        raise ValueError(f"chance is {chance}, not between 0 and 1")
    return Question(
        id=_text(values["id"], "id"),
        task=_text(values["task"], "task"),
        images=tuple(images),
        question=_text(values["question"], "question"),
        expected=_expected(values),
        chance=chance,
    )


def _expected(values: Mapping[str, Any]) -> str | None:
    """The right answer, None where there is none. Raises TypeError or ValueError."""
    if "expected" in values:  # a file of answers, which has null where none was known
        found = values["expected"]
        if found is None:
            return None
    elif "answer" in values:
        found = values["answer"]
    else:
        return None
    text = _text(found, "answer")
    if not text.strip():
        raise ValueError("the right answer is blank")
    return text


def _text(value: Any, name: str) -> str:
    """Text, or a number as text. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"{name} is {str(value)[:80]}, not text")
    return str(value)

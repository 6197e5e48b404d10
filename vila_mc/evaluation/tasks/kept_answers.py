"""Answers to a task on disk: kept while they come, so that an evaluation goes on where it ended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pydantic import TypeAdapter

from vila_mc.errors import DataError
from vila_mc.evaluation.tasks.asking import Answered
from vila_mc.evaluation.tasks.task import Item
from vila_mc.files import unfinished_path, write_whole
from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign

_LARGEST = 1 << 30
"""Bytes of a file of answers."""


class _Shown(TypedDict):
    id: str
    images: list[str]


class Kept(TypedDict):
    """An answer on disk."""

    id: str
    answer: str
    is_cut: bool
    prompt: str
    """All that was read, see ``vila_mc.evaluation.tasks.prompts.written``."""
    demonstrations: list[_Shown]
    """What of the training split stood in it."""


_KEPT = TypeAdapter(Kept)


class KeptAnswers:
    """The file beside the output that answers are added to.

    Args:
        output: where all answers will stand.
        asked: what else the answers follow from: the checkpoint, the task, the options.
        is_writer: whether this process writes; of several ranks one does.

    Raises:
        DataError: there is one of another evaluation, or it is damaged.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], *, is_writer: bool = True) -> None:
        self.path = unfinished_path(output)
        self._is_writer = is_writer
        self._head = json.dumps(asked, sort_keys=True)
        self.answers: dict[str, Kept] = {}
        """By item: what was answered, here or before."""
        if self.path.exists():
            self._read()
        elif is_writer:
            write_whole(self.path, self._head + "\n")

    def keep(self, answers: Sequence[Answered]) -> None:
        """Add answers, which are on disk when this returns."""
        kept = [_kept(one) for one in answers]
        if self._is_writer:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(one) + "\n" for one in kept))
        self.answers.update({one["id"]: one for one in kept})

    def remove(self) -> None:
        """They stand in the output now. Of several ranks the writer calls this."""
        self.path.unlink()

    def _read(self) -> None:
        """The last line may be half written; it is asked again."""
        try:
            head, *lines = read_foreign(self.path, _LARGEST).split(b"\n")
            if head.decode() != self._head:
                raise DataError(
                    f"{self.path} holds answers of another checkpoint, task or options. Remove it, "
                    "or give another output."
                )
            whole = lines[:-1]
            for line in whole:
                kept = parse_foreign(line, _KEPT)
                self.answers[kept["id"]] = kept
        except (OSError, UnicodeDecodeError, ForeignFileError) as error:
            raise DataError(
                f"{self.path} {error}. Remove it to begin anew, or give another output."
            ) from None
        if self._is_writer:  # at once, for other ranks may be reading
            write_whole(self.path, b"\n".join([head, *whole, b""]))


def _kept(answered: Answered) -> Kept:
    return {
        "id": answered.item.id,
        "answer": answered.answer,
        "is_cut": answered.is_cut,
        "prompt": answered.prompt,
        "demonstrations": [
            {"id": one.id, "images": [image.name for image in one.images]} for one in answered.shown
        ],
    }


def write_answers(output: Path, model: str, items: Sequence[Item], answers: Sequence[Kept]) -> None:
    """JSON Lines as LLaVA's scripts take them, what was read and what is right beside.

    The file is whole, or not there.
    """
    lines = [
        json.dumps(
            {
                "question_id": item.id if item.llava_id is None else item.llava_id,
                "prompt": item.llava_prompt or item.question,
                "text": kept["answer"],
                "answer_id": item.id,
                "model_id": model,
                "images": [image.name for image in item.images],
                "expected": list(item.expected),
                "category": item.category,
                "read": kept["prompt"],
                "demonstrations": kept["demonstrations"],
            }
        )
        for item, kept in zip(items, answers, strict=True)
    ]
    write_whole(output, "".join(line + "\n" for line in lines))

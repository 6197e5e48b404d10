"""Accuracies from the answers that ``vila-mc evaluate`` has written. No torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vila_mc.errors import DataError
from vila_mc.evaluation.scores import TaskScore, score
from vila_mc.foreign_files import ForeignFileError, open_foreign

_LONGEST_LINE = 2**20
_MOST_ANSWERS = 1_000_000
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class _Saved:
    """An answer, as far as counting needs it."""

    task: str
    is_correct: bool | None
    chance: float | None


def read_scores(file: Path) -> list[TaskScore]:
    """One score per task of a file of answers.

    Args:
        file: JSON Lines with ``task``, ``is_correct`` and ``chance``.

    Raises:
        DataError: it is no file of answers, or none of them is known to be right or wrong.
    """
    try:
        with open_foreign(file) as stream:
            scores = score(_answers(iter(lambda: stream.readline(_LONGEST_LINE), b""), file))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist. Give what evaluate wrote.") from None
    except ForeignFileError as error:
        raise DataError(f"{file} {error}.") from None
    if not scores:
        raise DataError(f"{file} holds no answer that is known to be right or wrong.")
    return scores


def _answers(lines: Iterator[bytes], file: Path) -> Iterator[_Saved]:
    for number, line in enumerate(lines, start=1):
        if number > _MOST_ANSWERS:
            raise DataError(f"{file} holds more than {_MOST_ANSWERS:,} answers.")
        try:
            values = json.loads(line)
            task, is_correct, chance = values["task"], values["is_correct"], values["chance"]
        except (ValueError, RecursionError, KeyError, TypeError):
            task = is_correct = chance = None
        is_known = is_correct is None or isinstance(is_correct, bool)
        has_chance = chance is None or (isinstance(chance, (int, float)) and 0 <= chance <= 1)
        if not (isinstance(task, str) and is_known and has_chance):
            raise DataError(
                f"line {number} of {file} is no answer. Give what evaluate wrote: JSON Lines with "
                "task, is_correct and chance."
            )
        yield _Saved(task[:_LONGEST_NAME], is_correct, chance)

"""Accuracy per task, with its uncertainty and the chance level beside it. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol


class Answered(Protocol):
    """An answered question, as far as counting needs it."""

    @property
    def task(self) -> str:
        """Answers of one task are counted together."""
        ...

    @property
    def is_correct(self) -> bool | None:
        """Whether it counts as right; None where no answer is expected."""
        ...

    @property
    def chance(self) -> float | None:
        """Accuracy of an answer that does not look, from 0 to 1; None where that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How one task went."""

    task: str
    num_correct: int
    num_answers: int
    """Answers that were expected to be something."""
    chance: float | None
    """None unless it is known of all of them."""

    def accuracy(self) -> float:
        """Share of right answers, from 0 to 1."""
        return self.num_correct / self.num_answers

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson's score interval)."""
        n, p, z = self.num_answers, self.accuracy(), 1.96
        centre = p + z * z / (2 * n)
        spread = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def verdict(self) -> str:
        """Where the interval lies relative to chance; nothing where that is not known."""
        if self.chance is None:
            return ""
        low, high = self.interval()
        if low > self.chance:
            return "above chance"
        return "below chance" if high < self.chance else "no better than chance"


def score(answers: Iterable[Answered]) -> list[TaskScore]:
    """One score per task, in order of first appearance. Chance is the mean over its answers.

    Answers that were not expected to be anything count nowhere, nor do tasks of such alone.
    """
    judged = [answer for answer in answers if answer.is_correct is not None]
    return [
        TaskScore(
            task=task,
            num_correct=sum(bool(answer.is_correct) for answer in group),
            num_answers=len(group),
            chance=_mean([answer.chance for answer in group]),
        )
        for task, group in by_task(judged).items()
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def by_task[AnsweredT: Answered](answers: Iterable[AnsweredT]) -> dict[str, list[AnsweredT]]:
    """Answers grouped by task, in order of first appearance."""
    groups: dict[str, list[AnsweredT]] = {}
    for answer in answers:
        groups.setdefault(answer.task, []).append(answer)
    return groups

"""Answers that are yes or no: POPE and MME."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Reading = Literal["first_sentence", "exact"]
"""How POPE's answers are read: VILA and LLaVA look in the first sentence for "no" or "not", and
take all else for yes; lmms-eval wants the one word."""


def read_pope(answer: str, reading: Reading) -> str:
    """ "yes", "no", or, read exactly, whatever was said."""
    if reading == "exact":
        return answer.lower().strip()
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


@dataclass(frozen=True, slots=True)
class YesNoScore:
    """How well objects were recognised, yes being the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float
    """Of the answers."""


def pope_score(answers: Sequence[str], expected: Sequence[str]) -> YesNoScore:
    """Of answers as ``read_pope`` gives them.

    Raises:
        ValueError: there are none, their numbers differ, or a right answer is neither yes nor no.
    """
    if not answers or set(expected) - {"yes", "no"}:
        raise ValueError("POPE needs answers, and right ones that are yes or no")
    pairs = [*zip(answers, expected, strict=True)]
    found = pairs.count(("yes", "yes"))
    said = sum(answer == "yes" for answer in answers)
    missed = pairs.count(("no", "yes"))
    precision = found / said if said else 0.0
    recall = found / (found + missed) if found + missed else 0.0
    total = precision + recall
    return YesNoScore(
        accuracy=sum(answer == right for answer, right in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / total if total else 0.0,
        yes_share=said / len(pairs),
    )


def read_mme(answer: str) -> str:
    """ "yes", "no" or "other", from the first letters."""
    said = answer.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    beginning = said[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def f1_influences(
    answers: Sequence[str], expected: Sequence[str], images: Sequence[str]
) -> dict[str, float]:
    """How far each image moves the F1 of ``pope_score``, to first order; they sum to zero.

    The sum of their squares is the variance of F1, as of a ratio of sums over images: questions
    about one image are no independent ones.
    """
    found, counted = dict.fromkeys(images, 0), dict.fromkeys(images, 0)
    for answer, right, image in zip(answers, expected, images, strict=True):
        found[image] += 2 * (answer == right == "yes")
        counted[image] += (answer == "yes") + (right == "yes" and answer in ("yes", "no"))
    total = sum(counted.values())
    f1 = sum(found.values()) / total if total else 0.0
    return {image: (found[image] - f1 * counted[image]) / max(total, 1) for image in found}


def mme_images(rows: Iterable[tuple[str, str, bool]]) -> dict[str, list[float]]:
    """Points of every image, 0 to 200, by category: share of right answers, plus 1 if both are.

    Args:
        rows: category, image, and whether the answer is right; two of each image.

    Raises:
        ValueError: an image has another number of questions.
    """
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for category, image, is_right in rows:
        images[category][image].append(is_right)
    for category, by_image in images.items():
        for image, answers in by_image.items():
            if len(answers) != 2:
                raise ValueError(f"{image} of {category} has {len(answers)} questions, not 2")
    return {
        category: [100 * (sum(two) / 2 + all(two)) for two in by_image.values()]
        for category, by_image in images.items()
    }


def mme_score(rows: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """Their mean by category. Raises ValueError as ``mme_images`` does."""
    return {category: fmean(points) for category, points in mme_images(rows).items()}

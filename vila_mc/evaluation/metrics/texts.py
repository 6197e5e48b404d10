"""Answers that are a short text: GQA's equality, ANLS, and DROP's exact match and F1."""

import re
import string
from collections.abc import Sequence
from functools import cache

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FARTHEST = 0.5
"""Share of letters to change, above which ANLS is 0."""
_MOST_SPANS = 16
"""Of one side that DROP's spans are assigned to each other with."""


def is_equal(answer: str, expected: str) -> bool:
    """Whether two texts are equal but for case and punctuation."""
    return words(answer) == words(expected)


def words(text: str) -> str:
    """A text without case and punctuation, as lmms-eval compares answers of GQA."""
    return text.lower().translate(_NO_PUNCTUATION)


def anls(answer: str, expected: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity to the closest right answer, from 0 to 1.

    Source: Biten et al., "Scene Text Visual Question Answering" (arXiv 1905.13648), section 4.
    """
    best = 0.0
    for right in expected:
        said, meant = (" ".join(text.lower().split()) for text in (answer, right))
        length = max(len(answer), len(right))
        distance = _edit_distance(said, meant) / length if length else 0.0
        best = max(best, 1 - distance if distance <= _FARTHEST else 0.0)
    return best


def _edit_distance(first: str, second: str) -> int:
    row: list[int] = [*range(len(second) + 1)]
    for at, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], at
        for to, other in enumerate(second, start=1):
            cheapest = min(row[to] + 1, row[to - 1] + 1, diagonal + (letter != other))
            diagonal, row[to] = row[to], cheapest
    return row[-1]


def drop_score(answer: Sequence[str], expected: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Exact match and F1 of DROP: the best over the right answers, both from 0 to 1.

    Source: the official ``drop_eval`` (Dua et al., arXiv 1903.00161, section 4), as lm-eval 0.4 has
    it.

    Args:
        answer: spans; one text is one span.
        expected: spans of each right answer.
    """
    best_match = best_f1 = 0.0
    for spans in expected:
        if spans and spans[0].strip():
            match, f1 = _compare([*map(_normalized, answer)], [*map(_normalized, spans)])
            best_match, best_f1 = max(best_match, match), max(best_f1, f1)
    return best_match, best_f1


def _compare(answer: Sequence[str], right: Sequence[str]) -> tuple[float, float]:
    is_same = set(answer) == set(right) and len(answer) == len(right)
    bags = [[frozenset(text.split()) for text in texts] for texts in (answer, right)]
    total = _best_assignment([[_f1(said, meant) for meant in bags[1]] for said in bags[0]])
    f1 = total / max(len(answer), len(right))
    return float(is_same), round(100 * f1) / 100


def _f1(said: frozenset[str], meant: frozenset[str]) -> float:
    numbers = {word for word in meant if _is_number(word)}
    if numbers and not numbers & said:
        return 0.0
    shared = len(said & meant)
    precision = shared / len(said) if said else 1.0
    recall = shared / len(meant) if meant else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _best_assignment(scores: Sequence[Sequence[float]]) -> float:
    """The largest sum of scores with at most one of each row and each column.

    Raises:
        ValueError: rows and columns are both too many.
    """
    if len(scores[0]) > len(scores):
        scores = [*zip(*scores, strict=True)]
    columns = len(scores[0])  # the shorter side: a set of them is a bit mask
    if columns > _MOST_SPANS:
        raise ValueError(f"{len(scores)} spans against {columns} are too many to compare")

    @cache
    def best(row: int, taken: int) -> float:
        if row == len(scores):
            return 0.0
        found = best(row + 1, taken)
        for column in range(columns):
            if not taken >> column & 1:
                with_it = scores[row][column] + best(row + 1, taken | 1 << column)
                found = max(found, with_it)
        return found

    return best(0, 0)


def _normalized(text: str) -> str:
    """Words without case, punctuation and articles, numbers as floats."""
    words = (_normalized_word(word) for word in re.split(" |-", text.lower()))
    return " ".join(word for word in words if word)


def _normalized_word(word: str) -> str:
    bare = word if _is_number(word) else word.translate(_NO_PUNCTUATION)
    number = str(float(bare)) if _is_number(bare) else bare
    return " ".join(_ARTICLES.sub(" ", number).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

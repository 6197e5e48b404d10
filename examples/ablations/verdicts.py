"""Whether the figures of several seeds bear out a claim.

A figure is a mean over seeds, each of which answers the same questions. Two things make it
uncertain: the seeds, of which there are few (Student's t over them), and the questions, which are a
sample too (binomial) and the same for every seed, so that more seeds do not help. An interval has
both, added as independent errors are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

_CONFIDENCE = 0.95
Verdict = Literal["agrees", "disagrees", "not decided"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What one model scored: one seed of one arm in one measure."""

    value: float
    """An accuracy from 0 to 100, or a loss."""
    questions: int = 0
    """Answers that it is the mean of; 0 for a loss."""

    def variance(self) -> float:
        """Of the mean over questions. A score of none or all is taken as half an answer off."""
        if not self.questions:
            return 0.0
        least = 0.5 / self.questions
        share = min(max(self.value / 100, least), 1 - least)
        return 100**2 * share * (1 - share) / self.questions


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and how far it may be off with a confidence of 95 %."""

    mean: float
    spread: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.spread

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.spread


def interval_of(figures: Sequence[Figure]) -> Interval:
    """The mean of an arm's seeds. With one seed the questions' part alone is known."""
    of_questions = fmean(figure.variance() for figure in figures)
    return _interval([figure.value for figure in figures], of_questions)


def difference(these: Sequence[Figure], those: Sequence[Figure]) -> Interval:
    """How much higher these are than those, seed by seed: equal seeds read equal data."""
    pairs = list(zip(these, those, strict=True))
    of_questions = fmean(a.variance() + b.variance() for a, b in pairs)
    return _interval([a.value - b.value for a, b in pairs], of_questions)


def _interval(values: Sequence[float], of_questions: float) -> Interval:
    normal = float(stats.norm.ppf(0.5 + _CONFIDENCE / 2))
    spread = normal * sqrt(of_questions)
    if len(values) > 1:
        student = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1))
        spread = sqrt(spread**2 + (student * stdev(values)) ** 2 / len(values))
    return Interval(fmean(values), spread)


def verdict(
    found: Interval, relation: Literal["higher", "lower", "close"], within: float
) -> Verdict:
    """What the difference of two arms says of a claim.

    Args:
        found: how much higher the claim's arm is than the one it is compared with.
        relation: what the claim says it is.
        within: the greatest difference that counts as ``close``.
    """
    if relation == "close":
        if -within <= found.low and found.high <= within:
            return "agrees"
        is_apart = found.low > within or found.high < -within
        return "disagrees" if is_apart else "not decided"
    low, high = (found.low, found.high) if relation == "higher" else (-found.high, -found.low)
    if low > 0:
        return "agrees"
    return "disagrees" if high < 0 else "not decided"

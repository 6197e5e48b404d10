"""What tells a figure that looks wrong from the usual ones: each a small rule with a memory.

None of them knows of ranks, files or the clock: they are given records, and say what they found.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median, median_low

from vila_mc.observe.record import StepRecord

_SIGMA = 1.4826
"""A standard deviation in median absolute ones, where figures are normally distributed."""
_LEAST_SPREAD = 0.01
"""Of the median: a window that hardly varies is no measure of what may vary."""
_FEWEST_SUBSTITUTES = 8
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What looks wrong, for people and as figures."""

    message: str
    value: float
    usual: float
    """What it was compared with."""
    rank: int | None = None
    """Where it is seen; None where it concerns all."""


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Means of one rank over some steps, in milliseconds."""

    rank: int
    peers: int
    """The ranks of one number do the same work."""
    passes_ms: float
    """In forward and backward passes; tensor-parallel ranks wait for each other within."""
    data_ms: float
    """Waiting for its data."""
    step_ms: float


class Deviation:
    """A figure far above its recent trace.

    The trace is a window of earlier steps; its median and median absolute deviation are hardly
    moved by the few wild ones among them.

    Args:
        name: what a person calls the figure.
        figure: what is looked at.
        deviations: as ``train.alarms.deviations``.
        window: steps that are remembered.
        is_by_factor: whether deviations are of its logarithm. A gradient norm that is twice the
            usual is as common as one that is half of it.
    """

    def __init__(
        self,
        name: str,
        figure: Callable[[StepRecord], float],
        deviations: float,
        window: int,
        *,
        is_by_factor: bool = False,
    ) -> None:
        self._name, self._figure, self._deviations = name, figure, deviations
        self._recent: deque[float] = deque(maxlen=window)
        self._enough, self._is_by_factor = window // 2, is_by_factor

    def look(self, record: StepRecord) -> Finding | None:
        """Take one step. One that changed nothing is told of elsewhere."""
        value = self._figure(record)
        if record.skipped or not math.isfinite(value) or value <= 0:
            return None
        placed = math.log(value) if self._is_by_factor else value
        found = self._compared(value, placed) if len(self._recent) >= self._enough else None
        self._recent.append(placed)
        return found

    def _compared(self, value: float, placed: float) -> Finding | None:
        middle = median(self._recent)
        usual = math.exp(middle) if self._is_by_factor else middle
        spread = _SIGMA * median(abs(each - middle) for each in self._recent)
        least = _LEAST_SPREAD * (1 if self._is_by_factor else usual)
        deviations = (placed - middle) / max(spread, least)
        if deviations <= self._deviations:
            return None
        return Finding(
            f"{self._name} {value:.4g} is {deviations:,.0f} deviations above {usual:.4g}, the "
            f"median of the {len(self._recent)} steps before",
            value,
            usual,
        )


class Substitutes:
    """A rising share of images that could not be decoded and were replaced.

    Args:
        share: as ``train.alarms.substitutes``.
        window: steps that are remembered.
    """

    def __init__(self, share: float, window: int) -> None:
        self._least = self._next = share
        self._recent: deque[tuple[int, int]] = deque(maxlen=window)

    def look(self, record: StepRecord) -> Finding | None:
        """Take one step."""
        self._recent.append((record.substitutes, record.images))
        replaced, images = map(sum, zip(*self._recent, strict=True))
        share, expected = replaced / max(images, 1), self._next
        if share < self._least:
            self._next = self._least
        if replaced < _FEWEST_SUBSTITUTES or share < expected:
            return None
        self._next = 2 * share
        return Finding(
            f"{replaced:,} of {images:,} images of the last {len(self._recent)} steps "
            f"({100 * share:.1f} %) could not be decoded and were replaced",
            share,
            expected,
        )


class Slowdown:
    """Steps that take longer than they did.

    Medians of a quarter of the window are compared with the least median of a whole window, so
    that a step with a pause says nothing, and neither does a slow decline remain unsaid.

    Args:
        factor: as ``train.alarms.slowdown``.
        window: steps that are remembered.
    """

    def __init__(self, factor: float, window: int) -> None:
        self._factor, self._few, self._seen = factor, window // 4, 0
        self._recent: deque[float] = deque(maxlen=window)
        self._fastest = math.inf

    def look(self, record: StepRecord) -> Finding | None:
        """Take one step."""
        self._recent.append(record.step_ms)
        self._seen += 1
        if self._seen % self._few or len(self._recent) < 4 * self._few:
            return None
        now = median(list(self._recent)[-self._few :])
        self._fastest = min(self._fastest, median(self._recent))
        if now <= self._factor * self._fastest:
            return None
        return Finding(
            f"the last {self._few} steps took {now:,.0f} ms each, {now / self._fastest:.1f} times "
            f"as long as the {self._fastest:,.0f} ms of the run's fastest",
            now,
            self._fastest,
        )


class Straggler:
    """A rank that is slower than those that do the same work; where none does, than it was.

    Args:
        factor: as ``train.alarms.straggler``.
        window: comparisons that are remembered.
    """

    def __init__(self, factor: float, window: int = 16) -> None:
        self._factor = factor
        self._before: deque[list[float]] = deque(maxlen=window)

    def look(self, times: Sequence[RankTimes], names: Sequence[str]) -> Finding | None:
        """Take one comparison.

        Args:
            times: of every rank, by rank.
            names: what a person calls each rank.
        """
        usual = self._usual(times)
        self._before.append([each.passes_ms for each in times])
        if usual is None:
            return None
        # All of them are slower where something slows all down: that is no straggler.
        ratios = [each.passes_ms / max(one, 1e-9) for each, one in zip(times, usual, strict=True)]
        common = median_low(ratios)
        slow = [rank for rank, each in enumerate(ratios) if each > self._factor * common]
        if not slow:
            return None
        slow.sort(key=lambda rank: -ratios[rank])
        worst = slow[0]
        ms, others = times[worst].passes_ms, usual[worst] * common
        return Finding(
            f"{_named([names[rank] for rank in slow])}: its passes took {ms:,.1f} ms a step, "
            f"{ms / others:.1f} times the {others:,.1f} ms of {self._others(times)}",
            ms,
            others,
            worst,
        )

    def _usual(self, times: Sequence[RankTimes]) -> list[float] | None:
        if _have_peers(times):
            of_peers = {
                peers: median_low([each.passes_ms for each in group])
                for peers, group in groupby(sorted(times, key=_peers), key=_peers)
            }
            return [of_peers[each.peers] for each in times]
        if len(times) == 1 or len(self._before) < 4:
            return None
        return [median(of_rank) for of_rank in zip(*self._before, strict=True)]

    def _others(self, times: Sequence[RankTimes]) -> str:
        return "ranks with the same work" if _have_peers(times) else "before, beside the others"


def _peers(times: RankTimes) -> int:
    return times.peers


def _have_peers(times: Sequence[RankTimes]) -> bool:
    return len({each.peers for each in times}) < len(times)


class DataWait:
    """Steps that wait for their data.

    Args:
        share: as ``train.alarms.data_wait``.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def look(self, times: Sequence[RankTimes], names: Sequence[str]) -> Finding | None:
        """Take one comparison; see ``Straggler``. One rank that waits stops all."""
        worst = max(times, key=lambda each: each.data_ms)
        share = worst.data_ms / max(worst.step_ms, 1e-9)
        if share <= self._share:
            return None
        return Finding(
            f"{names[worst.rank]} waited {worst.data_ms:,.0f} ms of each step's "
            f"{worst.step_ms:,.0f} ms ({100 * share:.0f} %) for its data",
            share,
            self._share,
            worst.rank,
        )


def _named(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more

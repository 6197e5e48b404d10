"""Which sample stands at which position of a run: a pure function of the seed and the position.

Position p falls on the point (stride * p + offset) mod period, where the stride is near the period
divided by the golden ratio. Such points fill the period evenly, and each dataset owns an interval
of it, so every stretch of positions holds each dataset in nearly its exact share. With epochs the
period is the number of samples to read, and after each period the shares are exact.

The k-th draw from a dataset is element k of a pseudo-random permutation per epoch, which is
computed where it is needed rather than stored. Nothing depends on ranks, batch sizes or libraries'
random generators, so a run resumes from one integer anywhere.
"""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from vila_mc.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio."""
_ENDLESS = 2**64
"""The period of a blend by weights: no run gets there."""
_LARGEST_PERIOD = 2**40
_LONGEST_STRETCH = 2**23
"""Most positions of one call of ``choose``: the product of the two stays below 2**64."""
_ROUNDS = 6
_TURNS = np.arange(_ROUNDS, dtype=np.uint64) * _GOLDEN
_SHIFTS = np.asarray([30, 27, 31], np.uint64)
_FACTORS = np.asarray([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


class Blend:
    """An endless, seeded order over several datasets; see ``by_weights`` and ``by_epochs``.

    Args:
        ends: where each dataset's interval of the period ends; the last end is the period.
        sizes: samples in each dataset.
        seed: decides the order.
    """

    def __init__(self, ends: Sequence[int], sizes: Sequence[int], seed: int) -> None:
        self._ends = list(ends)
        self._period = self._ends[-1]
        self._stride = _stride(self._period)
        self._sizes = tuple(int(size) for size in sizes)
        self._key = mix(_u64(seed))

    @classmethod
    def by_weights(cls, weights: Sequence[float], sizes: Sequence[int], seed: int) -> Self:
        """Each dataset in its share, without end.

        Args:
            weights: share of the positions of each dataset, up to a common factor.
            sizes: samples in each dataset.
            seed: decides the order.

        Raises:
            DataError: there is no dataset, or one is empty.
        """
        _check(weights, sizes)
        shares = np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64))
        # Upper ends of each dataset's share of the 64-bit integers; the last takes the rest.
        ends = np.minimum(np.cumsum(shares)[:-1], 1 - 2.0**-53)
        return cls([*map(int, (ends * 2.0**64).astype(np.uint64)), _ENDLESS], sizes, seed)

    @classmethod
    def by_epochs(cls, epochs: Sequence[float], sizes: Sequence[int], seed: int) -> Self:
        """Each dataset as often as ``epochs`` says, then the same number of draws again.

        Args:
            epochs: passes through each dataset; 0.5 reads half of it.
            sizes: samples in each dataset.
            seed: decides the order.

        Raises:
            DataError: there is no dataset, one is empty, or there are too many samples to read.
        """
        _check(epochs, sizes)
        draws = [max(1, round(each * size)) for each, size in zip(epochs, sizes, strict=True)]
        if sum(draws) > _LARGEST_PERIOD:
            raise DataError(
                f"data.blend asks for {sum(draws):,} samples; at most {_LARGEST_PERIOD:,} can "
                "be counted. Use weights, or fewer epochs."
            )
        return cls(np.cumsum(draws).tolist(), sizes, seed)

    def period(self) -> int | None:
        """Samples after which all epochs are done; None for a blend by weights."""
        return None if self._period == _ENDLESS else self._period

    def choose(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Datasets and samples at positions ``start`` to ``start + count - 1``.

        Each dataset is used up before any of its samples comes again.

        Returns:
            [count] int64 index of the dataset, [count] int64 index of the sample within it.
        """
        assert count <= _LONGEST_STRETCH, count
        datasets = self._datasets(start, count)
        samples = np.empty(count, np.int64)
        below = 0
        for dataset, (size, end) in enumerate(zip(self._sizes, self._ends, strict=True)):
            up_to = self._points_below(end, start)
            here = np.flatnonzero(datasets == dataset)
            draws = up_to - below + np.arange(len(here))
            samples[here] = self._permuted(dataset, size, draws)
            below = up_to
        return datasets, samples

    def _datasets(self, start: int, count: int) -> np.ndarray:
        first = (self._stride * start + self._offset()) % self._period
        points = _u64(first) + _u64(self._stride) * np.arange(count, dtype=np.uint64)
        if self._period != _ENDLESS:
            points %= np.uint64(self._period)
        ends = np.asarray(self._ends[:-1], np.uint64)
        datasets: np.ndarray = np.searchsorted(ends, points, side="right").astype(np.int64)
        return datasets

    def _offset(self) -> int:
        return int(self._key[0]) % self._period

    def _points_below(self, end: int, count: int) -> int:
        """How many of the first ``count`` points lie below ``end``."""
        # A point x mod m is below e exactly where floor(x / m) - floor((x - e) / m) is 1.
        period, stride, offset = self._period, self._stride, self._offset()
        whole = _sum_of_floors(count, period, stride, offset)
        return whole + count - _sum_of_floors(count, period, stride, offset + period - end)

    def _permuted(self, dataset: int, size: int, draws: np.ndarray) -> np.ndarray:
        epochs, indices = np.divmod(draws, size)
        # Mixed between the sums: seed 3's second dataset is not seed 4's first.
        keys = mix(mix(self._key + _u64(dataset)) + epochs.astype(np.uint64))
        return permute(indices, size, keys)


def _check(weights: Sequence[float], sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < 1 or len(weights) != len(sizes):
        raise DataError(
            f"cannot blend datasets of {list(sizes)} samples with weights {list(weights)}: "
            "each needs at least one sample and a weight."
        )


def _stride(period: int) -> int:
    """The period divided by the golden ratio, or a little more: it has no divisor with it."""
    if period == _ENDLESS:
        return int(_GOLDEN)
    stride = round(period * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, period) != 1:
        stride += 1
    return stride


def _sum_of_floors(count: int, modulus: int, slope: int, offset: int) -> int:
    """Sum of floor((slope * i + offset) / modulus) over i from 0 to count - 1; none is negative.

    Euclid's algorithm on slope and modulus: counting the lattice points under a line, and then
    under the same line with the axes exchanged.
    """
    total = 0
    while True:
        total += count * (count - 1) // 2 * (slope // modulus) + count * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        highest = slope * count + offset
        if highest < modulus:
            return total
        count, offset = divmod(highest, modulus)
        modulus, slope = slope, modulus


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Map ``indices`` to other indices below ``size``, one to one for each key.

    A Feistel network on the next power of four, walked until it lands below ``size`` (cycle
    walking): no table, and the same result on every machine.

    Args:
        indices: [n] integers from 0 to ``size - 1``.
        size: how many there are, at most 2**62.
        keys: [n] uint64; each key is another permutation.

    Returns:
        [n] int64.

    Source:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    values = indices.astype(np.uint64)
    todo = np.arange(len(values))
    while len(todo):
        values[todo] = _feistel(values[todo], half, keys[todo])
        todo = todo[values[todo] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for turn in range(_ROUNDS):
        noise = mix(right + keys + _TURNS[turn])
        noise &= mask
        noise ^= left
        left, right = right, noise
    return (left << half) | right


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _FACTORS[0]
    mixed ^= mixed >> _SHIFTS[1]
    mixed *= _FACTORS[1]
    mixed ^= mixed >> _SHIFTS[2]
    return mixed


def _u64(value: int) -> np.ndarray:
    # An array, not a scalar: numpy wraps arrays around silently, as wanted here.
    return np.asarray([value % 2**64], np.uint64)

"""Which sample stands at which position of a run: a pure function of the seed and the position.

The dataset at position p is read off a sequence that fills [0, 1) evenly (p times the golden ratio,
fractional part), so that every stretch of positions holds each dataset in nearly its exact share.
The k-th draw from a dataset is element k of a pseudo-random permutation per epoch, which is
computed where it is needed rather than stored. Nothing depends on ranks, batch sizes or libraries'
random generators, so a run resumes from one integer anywhere.
"""

from collections.abc import Sequence

import numpy as np

from vila_mc.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio."""
_BLOCK = 1 << 16
"""Positions whose draws are counted at a time."""
_ROUNDS = 6


class Blend:
    """An endless, seeded order over several datasets.

    Args:
        weights: share of the positions of each dataset, up to a common factor.
        sizes: samples in each dataset.
        seed: decides the order.

    Raises:
        DataError: there is no dataset, or one is empty.
    """

    def __init__(self, weights: Sequence[float], sizes: Sequence[int], seed: int) -> None:
        if not sizes or min(sizes) < 1 or len(weights) != len(sizes):
            raise DataError(
                f"cannot blend datasets of {list(sizes)} samples with weights {list(weights)}: "
                "each needs at least one sample and a weight."
            )
        shares = np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64))
        # Upper ends of each dataset's share of the 64-bit integers; the last takes the rest.
        ends = np.minimum(np.cumsum(shares)[:-1], 1 - 2.0**-53)
        self._ends = (ends * 2.0**64).astype(np.uint64)
        self._sizes = tuple(int(size) for size in sizes)
        self._offset = _mix(_u64(seed))
        self._counts = [np.zeros(len(sizes), np.int64)]

    def choose(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Datasets and samples at positions ``start`` to ``start + count - 1``.

        Each dataset is used up before any of its samples comes again.

        Returns:
            [count] int64 index of the dataset, [count] int64 index of the sample within it.
        """
        datasets = self._datasets(start, count)
        draws = np.empty(count, np.int64)
        before = self._counts_before(start)
        for dataset in range(len(self._sizes)):
            here = datasets == dataset
            draws[here] = before[dataset] + np.arange(np.count_nonzero(here))
        samples = np.empty(count, np.int64)
        for dataset, size in enumerate(self._sizes):
            here = datasets == dataset
            samples[here] = self._permuted(dataset, size, draws[here])
        return datasets, samples

    def _datasets(self, start: int, count: int) -> np.ndarray:
        positions = np.arange(start, start + count, dtype=np.uint64)
        points = positions * _GOLDEN + self._offset
        datasets: np.ndarray = np.searchsorted(self._ends, points, side="right").astype(np.int64)
        return datasets

    def _counts_before(self, position: int) -> np.ndarray:
        """[datasets] draws from each dataset at positions below ``position``."""
        block, rest = divmod(position, _BLOCK)
        while len(self._counts) <= block:
            self._counts.append(self._counts[-1] + self._count((len(self._counts) - 1) * _BLOCK))
        counts: np.ndarray = self._counts[block] + self._count(block * _BLOCK, rest)
        return counts

    def _count(self, start: int, count: int = _BLOCK) -> np.ndarray:
        counts: np.ndarray = np.bincount(self._datasets(start, count), minlength=len(self._sizes))
        return counts

    def _permuted(self, dataset: int, size: int, draws: np.ndarray) -> np.ndarray:
        epochs, indices = np.divmod(draws, size)
        # Mixed between the sums: seed 3's second dataset is not seed 4's first.
        keys = _mix(_mix(self._offset + _u64(dataset)) + epochs.astype(np.uint64))
        return permute(indices, size, keys)


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
        noise = _mix(right + keys + _u64(turn) * _GOLDEN)
        left, right = right, left ^ (noise & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _u64(value: int) -> np.ndarray:
    # An array, not a scalar: numpy wraps arrays around silently, as wanted here.
    return np.asarray([value % 2**64], np.uint64)

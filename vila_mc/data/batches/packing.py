"""Several samples to a row: which row each goes to, from their lengths alone.

``best_fit`` decides how many samples of the stream make a batch of rows, and puts them there in the
order of the stream, so that no sort brings similar samples together. ``spread_images`` then swaps
samples between rows until every row holds about the same number of images.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

_ROW_BITS = 24
"""Space left and row stand in one integer, space first, so that one sorted list holds both."""
_STRIDES = ((1, 2, 3, 5), (8, 13, 21), (34, 55, 89))
"""How far apart, in the order of their lengths, samples are that may be swapped in a round."""
_SWEEPS = 4
_TOLERANCE = 1.08
"""A row with so many times the mean number of images is even enough."""


def best_fit(lengths: Sequence[int], num_rows: int, capacity: int) -> np.ndarray:
    """Put each sample into the fullest row that has room, until one finds room nowhere.

    Args:
        lengths: positions of each sample, in order; each at least 1 and at most ``capacity``.
        num_rows: rows, all empty at first.
        capacity: positions of a row.

    Returns:
        [n] row of each of the first n samples; n is ``len(lengths)`` if there was room for all.

    Source:
        Best fit, on line, as in Johnson, Fast Algorithms for Bin Packing, JCSS 1974.
    """
    # Full rows leave the list.
    spaces = [capacity << _ROW_BITS | row for row in range(num_rows)]
    row_mask = (1 << _ROW_BITS) - 1
    rows: list[int] = []
    for length in lengths:
        needed = length << _ROW_BITS
        at = bisect_left(spaces, needed)
        if at == len(spaces):
            break
        space = spaces.pop(at)
        rows.append(space & row_mask)
        if space - needed > row_mask:
            insort(spaces, space - needed)
    return np.asarray(rows, np.int64)


def spread_images(
    lengths: np.ndarray, images: np.ndarray, rows: np.ndarray, num_rows: int, capacity: int
) -> np.ndarray:
    """Swap samples of similar length between rows until the rows hold similar numbers of images.

    In each round, samples that are neighbours in the order of lengths are swapped where this evens
    out their two rows and both have room; a row takes part in one swap of a round, the best.

    Args:
        lengths: [n] int64 positions of each sample.
        images: [n] int64 images of each sample.
        rows: [n] row of each sample; no row holds more than ``capacity``.
        num_rows: rows.
        capacity: positions of a row.

    Returns:
        [n] row of each sample; every row still has room for its samples.
    """
    rows = rows.copy()
    room = capacity - np.bincount(rows, lengths, minlength=num_rows).astype(np.int64)
    count = np.bincount(rows, images, minlength=num_rows).astype(np.int64)
    even_enough = max(np.ceil(count.mean()), count.mean() * _TOLERANCE)
    by_length = np.argsort(lengths, kind="stable")
    rounds = [_swaps_worth_a_look(by_length, strides, lengths, images) for strides in _STRIDES]
    for _ in range(_SWEEPS):
        most = count.max()
        for shorter, longer, positions, pictures in rounds:
            if count.max() <= even_enough:
                return rows
            chosen = _best_swaps(rows[shorter], rows[longer], positions, pictures, room, count)
            if len(chosen) == 0:
                continue
            one, other = rows[shorter[chosen]], rows[longer[chosen]]
            rows[shorter[chosen]], rows[longer[chosen]] = other, one
            room[one] -= positions[chosen]
            room[other] += positions[chosen]
            count[one] += pictures[chosen]
            count[other] -= pictures[chosen]
        if count.max() == most:
            break
    return rows


def _swaps_worth_a_look(
    by_length: np.ndarray, strides: Sequence[int], lengths: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of samples so far apart in the order of lengths that do not hold the same images.

    Returns:
        [k] each: the shorter and the longer sample; positions and images the longer has more.
    """
    shorter = np.concatenate([by_length[:-stride] for stride in strides])
    longer = np.concatenate([by_length[stride:] for stride in strides])
    pictures = images[longer] - images[shorter]
    kept = np.flatnonzero(pictures)
    shorter, longer = shorter[kept], longer[kept]
    return shorter, longer, lengths[longer] - lengths[shorter], pictures[kept]


def _best_swaps(
    one: np.ndarray,
    other: np.ndarray,
    positions: np.ndarray,
    pictures: np.ndarray,
    room: np.ndarray,
    count: np.ndarray,
) -> np.ndarray:
    """Which of some possible swaps to make, at most one per row.

    Args:
        one, other: [k] the rows whose samples would be swapped.
        positions, pictures: [k] what ``one`` would gain and ``other`` lose; positions are not
            negative.
        room, count: [rows] positions left and images held.

    Returns:
        indices of the chosen swaps.
    """
    # By how much the sum of squares of the two counts would fall, halved.
    gain = pictures * (count[other] - count[one] - pictures)
    useful = np.flatnonzero((gain > 0) & (positions <= room[one]))
    if len(useful) == 0:
        return useful
    useful = useful[np.argsort(gain[useful], kind="stable")]
    best = np.full(len(room), -1)
    both = np.stack([one[useful], other[useful]], axis=1)
    best[both.ravel()] = np.repeat(useful, 2)  # the last one written, of the largest gain, stays
    chosen: np.ndarray = useful[(best[both] == useful[:, None]).all(axis=1)]
    return chosen

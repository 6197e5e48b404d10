"""Packing by best fit: nothing is lost, little is wasted, and images are spread."""

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_mc.data.batches.packing import best_fit, spread_images

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=120)


def plain_best_fit(lengths: list[int], num_rows: int, capacity: int) -> list[int]:
    """The same by looking at every row: the fullest that has room, the lowest of equals."""
    spaces, rows = [capacity] * num_rows, []
    for length in lengths:
        fitting = [(space, row) for row, space in enumerate(spaces) if space >= length]
        if not fitting:
            break
        rows.append(min(fitting)[1])
        spaces[rows[-1]] -= length
    return rows


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12))
def test_best_fit_is_best_fit(lengths: list[int], num_rows: int) -> None:
    assert best_fit(lengths, num_rows, 50).tolist() == plain_best_fit(lengths, num_rows, 50)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_spreading_keeps_every_row_within_its_room(
    lengths: list[int], num_rows: int, random: Random
) -> None:
    rows = best_fit(lengths, num_rows, 50)
    sizes = np.asarray(lengths[: len(rows)])
    images = np.asarray([random.randint(0, 3) for _ in rows])
    spread = spread_images(sizes, images, rows, num_rows, 50)
    assert np.bincount(spread, sizes, num_rows).max() <= 50
    before, after = (np.bincount(each, images, num_rows) for each in (rows, spread))
    assert (after**2).sum() <= (before**2).sum()
    assert np.bincount(spread).sum() == len(rows)


def documents_and_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Half interleaved documents of 1 to 6 images, half captioned ones; 144 positions an image."""
    choose = np.random.default_rng(0)
    is_document = choose.random(count) < 0.5
    images = np.where(is_document, choose.integers(1, 7, count), 1)
    text = np.where(is_document, choose.integers(50, 930, count), choose.integers(10, 40, count))
    return text + 144 * images, images


def test_little_is_wasted_and_no_row_has_many_more_images() -> None:
    lengths, images = documents_and_pairs(2000)
    rows = best_fit(lengths.tolist(), 64, 4096)
    lengths, images = lengths[: len(rows)], images[: len(rows)]
    assert lengths.sum() > 0.98 * 64 * 4096
    unspread = np.bincount(rows, images)
    spread = np.bincount(spread_images(lengths, images, rows, 64, 4096), images)
    assert unspread.max() > 1.3 * unspread.mean()
    assert spread.max() <= 1.15 * spread.mean()


def test_rows_without_images_stay_as_they_are() -> None:
    rows = np.asarray([0, 1, 0, 1])
    lengths, images = np.asarray([3, 4, 5, 6]), np.zeros(4, np.int64)
    assert spread_images(lengths, images, rows, 2, 10).tolist() == rows.tolist()

"""A function over a stream, on several processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.ordered_map import ordered_map
from vila_mc.errors import SetupError

Write = Callable[..., Path]


def _deadly() -> Callable[[int], int]:
    return os._exit


def _absolute() -> Callable[[int], int]:
    return abs


def test_killed_worker_is_reported() -> None:
    with pytest.raises(SetupError, match="one of the 2 worker processes was killed"):
        list(ordered_map(_deadly, (), range(3), 2))


def test_map_reads_only_a_little_ahead() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = ordered_map(_absolute, (), items(), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert len(taken) <= 16 * 2 * 3

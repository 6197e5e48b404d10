"""The clocks of ranks are brought together."""

import time

from tests.support.ranks import run_ranks
from vila_mc.config.parallel import ParallelConfig
from vila_mc.parallel.clocks import clock_offset
from vila_mc.parallel.groups import distributed

PLANTED = (0.0, 5.0, -7.25)
"""Seconds by which each rank's clock is ahead."""


def _offsets() -> list[tuple[float, float]]:
    with distributed(ParallelConfig(), seed=1, timeout_minutes=2) as ranks:
        ahead = PLANTED[ranks.rank]
        return [
            clock_offset(ranks, time.perf_counter),
            clock_offset(ranks, lambda: time.perf_counter() + ahead),
        ]


def test_a_planted_difference_is_found_within_the_error() -> None:
    for planted, (as_it_is, moved) in zip(PLANTED, run_ranks(3, _offsets), strict=True):
        assert as_it_is[0] == 0.0
        offset, error = moved
        assert 0 < error < 1
        assert abs(offset + planted) <= error

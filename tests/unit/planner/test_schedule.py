"""The simulated schedule against formulas, and against orders written down by hand."""

from itertools import pairwise

import pytest

from vila_mc.planner.schedule import rank_order, simulate


def even(seconds: list[float], microbatches: int) -> list[list[float]]:
    """Every microbatch takes the same."""
    return [[one] * microbatches for one in seconds]


@pytest.mark.parametrize(
    ("pipeline", "virtual"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2), (4, 4)]
)
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_bubble_is_that_of_the_paper(pipeline: int, virtual: int, rounds: int) -> None:
    # arXiv 2104.04473, section 2.2: of p - 1 microbatches, in v chunks of them each.
    microbatches = pipeline * rounds
    chunks = pipeline * virtual
    forward, backward = 0.25 / virtual, 0.75 / virtual
    times = even([forward] * chunks, microbatches), even([backward] * chunks, microbatches)
    events = simulate(*times, pipeline, 0.0)
    assert len(events) == 2 * chunks * microbatches
    span = max(event.end for event in events)
    assert span == pytest.approx(microbatches + (pipeline - 1) / virtual)


def test_nothing_starts_before_its_input_and_no_rank_does_two_things() -> None:
    forward, backward = [1.0, 3.0, 2.0, 1.5], [2.0, 5.0, 4.0, 2.5]
    events = simulate(even(forward, 6), even(backward, 6), 2, 0.5)
    at = {(one.direction, one.chunk, one.microbatch): one for one in events}
    for (direction, chunk, microbatch), one in at.items():
        if direction == "forward" and chunk:
            assert one.start >= at["forward", chunk - 1, microbatch].end + 0.5
        if direction == "backward" and chunk < 3:
            assert one.start >= at["backward", chunk + 1, microbatch].end + 0.5
        if direction == "backward" and chunk == 3:
            assert one.start >= at["forward", 3, microbatch].end
    for rank in range(2):
        mine = [one for one in events if one.rank == rank]
        assert all(a.end <= b.start for a, b in pairwise(mine))


def test_orders_are_megatrons() -> None:
    # Forward is False; (backward?, chunk, microbatch).
    assert rank_order(0, 2, 1, 3) == [
        (False, 0, 0),
        (False, 0, 1),
        (True, 0, 0),
        (False, 0, 2),
        (True, 0, 1),
        (True, 0, 2),
    ]
    assert rank_order(1, 2, 1, 2) == [(False, 1, 0), (True, 1, 0), (False, 1, 1), (True, 1, 1)]
    ahead = rank_order(0, 2, 2, 2)[:4]  # (2 - 0 - 1) * 2 + (2 - 1) * 2
    assert ahead == [(False, 0, 0), (False, 0, 1), (False, 2, 0), (False, 2, 1)]
    assert rank_order(1, 2, 2, 2)[2:4] == [(False, 3, 0), (True, 3, 0)]


def test_a_slow_stage_sets_the_pace() -> None:
    events = simulate(even([1.0, 2.0], 10), even([1.0, 2.0], 10), 2, 0.0)
    assert max(one.end for one in events) == pytest.approx(1 + 10 * 4 + 1)


def test_one_slow_microbatch_holds_the_others_up() -> None:
    # Two stages of 1 s forward and 1 s backward, three microbatches: 2 (3 + 1) s. The second takes
    # 3 s more on its way through the first stage, and nothing else can be done meanwhile.
    seconds = even([1.0, 1.0], 3)
    assert max(one.end for one in simulate(seconds, seconds, 2, 0.0)) == pytest.approx(8)
    slow = [[1.0, 4.0, 1.0], [1.0, 1.0, 1.0]]
    events = simulate(slow, seconds, 2, 0.0)
    assert max(one.end for one in events) == pytest.approx(10)
    (second,) = [one for one in events if (one.chunk, one.microbatch) == (0, 1)][:1]
    assert (second.start, second.end) == (1.0, 5.0)

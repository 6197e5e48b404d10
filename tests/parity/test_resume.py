"""A run that stops and goes on, at the same layout or another, learns what an unbroken run does."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import NUM_STEPS, Trace, resumed_trace, trace
from tests.support.ranks import run_ranks

STOP_AFTER = 2

Layout = tuple[int, dict[str, Any]]
"""How many ranks, and the parallel section of their run."""

TP2 = (2, dict(tensor=2))
DP2: Layout = (2, dict())
PP2_DEDICATED = (2, dict(pipeline=2, vision_placement="dedicated"))
PP2_VIRTUAL2 = (2, dict(pipeline=2, virtual=2))
TP2_PP2 = (4, dict(tensor=2, pipeline=2))


def _save_and_resume(
    directory: Path, seed_checkpoint: Path, before: Layout, after: Layout
) -> tuple[list[Trace], list[Trace]]:
    """The traces of every rank before the stop and after it."""
    (ranks_before, parallel_before), (ranks_after, parallel_after) = before, after
    first = run_ranks(
        ranks_before, _first_part, directory, seed_checkpoint, parallel_before, STOP_AFTER
    )
    second = run_ranks(
        ranks_after,
        _second_part,
        directory,
        seed_checkpoint,
        parallel_after,
        NUM_STEPS - STOP_AFTER,
    )
    return first, second


def _first_part(
    directory: Path, seed_checkpoint: Path, parallel: dict[str, Any], steps: int
) -> Trace:
    return resumed_trace(directory, seed_checkpoint, parallel, steps=steps, save=True)


def _second_part(
    directory: Path, seed_checkpoint: Path, parallel: dict[str, Any], steps: int
) -> Trace:
    return resumed_trace(directory, seed_checkpoint, parallel, steps=steps, save=False)


@pytest.mark.parametrize(
    "layout", [DP2, TP2_PP2, PP2_VIRTUAL2], ids=["dp2", "tp2-pp2", "pp2-virtual2"]
)
def test_the_same_layout_goes_on_bit_for_bit(
    layout: Layout, seed_checkpoint: Path, tmp_path: Path
) -> None:
    first, second = _save_and_resume(tmp_path, seed_checkpoint, layout, layout)
    world_size, parallel = layout
    for unbroken, before, after in zip(
        run_ranks(world_size, trace, seed_checkpoint, parallel), first, second, strict=True
    ):
        assert [*before, *after] == unbroken[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [(TP2, PP2_DEDICATED), (DP2, TP2_PP2), (PP2_VIRTUAL2, (1, dict()))],
    ids=["tp2 to pp2-dedicated", "dp2 to tp2-pp2", "pp2-virtual2 to one rank"],
)
def test_another_layout_goes_on(
    before: Layout,
    after: Layout,
    seed_checkpoint: Path,
    single_rank: dict[str, Trace],
    tmp_path: Path,
) -> None:
    first, second = _save_and_resume(tmp_path, seed_checkpoint, before, after)
    expected = single_rank["everything"]
    assert_every_rank_matches(first, expected[:STOP_AFTER], "before")
    assert_every_rank_matches(second, expected[STOP_AFTER:], "after")

"""Pictures cut into tiles teach the same at every layout, packed or not."""

from pathlib import Path

from tests.parity.compare import assert_every_rank_matches
from tests.parity.tile_trace import trace_of_tiles
from tests.support.ranks import run_ranks

LAYOUTS = {
    "tp2-sp x pp2-dedicated": (
        4,
        dict(tensor=2, sequence=True, pipeline=2, vision_placement="dedicated"),
    ),
    "pp2 x dp2": (4, dict(pipeline=2)),
}


def test_every_layout_and_packing_equals_one_rank(seed_checkpoint: Path) -> None:
    (separate,) = run_ranks(1, trace_of_tiles, seed_checkpoint, {}, False)
    for layout, (world_size, parallel) in LAYOUTS.items():
        traces = run_ranks(world_size, trace_of_tiles, seed_checkpoint, parallel, True)
        assert_every_rank_matches(traces, separate, layout)

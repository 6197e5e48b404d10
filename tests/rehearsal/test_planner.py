"""The planner's memory is that of the rehearsal within 3 %, layout by layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.small import rehearsed, small_run
from vila_mc.planner.constants import FITTED
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.memory import rank_memory
from vila_mc.topology.layout import Coordinates, Layout

# Large enough that what is counted by the piece does not matter; without memory it costs nothing.
MODEL: dict[str, Any] = {
    "vision": dict(image_size=336, patch_size=14, width=512, layers=2, heads=8, ffn=2048),
    "language": dict(
        layers=2, width=1024, ffn=2752, heads=8, kv_heads=8, vocab_size=8000, max_positions=2048
    ),
}
EVERY_PART = {"trainable": ["vision", "connector", "language"]}
PIPELINE: dict[str, Any] = {"language": {"layers": 4}}
# ranks, pipeline stages to look at, sections
CASES: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "the optimizer's state shared by 8": (8, (0,), {}),
    "tensor 2, pipeline 2": (
        4,
        (0, 1),
        {"parallel": {"tensor": 2, "sequence": True, "pipeline": 2}},
    ),
    "tensor 2, without sequence": (2, (0,), {"parallel": {"tensor": 2}}),
    "pipeline 2 x virtual 2": (
        2,
        (0,),
        {"parallel": {"pipeline": 2, "virtual": 2}, "model": PIPELINE},
    ),
    "vision on its own": (
        2,
        (0,),
        {"parallel": {"pipeline": 2, "vision_placement": "dedicated"}},
    ),
    "recomputation": (1, (0,), {"train": {"recompute": "full"}}),
    "every part": (1, (0,), {"train": EVERY_PART}),
    "the connector alone": (1, (0,), {"train": {"trainable": ["connector"]}}),
    "adapters": (1, (0,), {"lora": {"rank": 16}, "train": {"trainable": []}}),
    "norms of queries and keys": (
        1,
        (0,),
        {"model": {"language": {"family": "qwen3", "kv_heads": 4, "head_width": 128}}},
    ),
    "a micro-batch of 2, packed, grouped queries": (
        1,
        (0,),
        {
            "data": {"packing": True},
            "train": {"micro_batch": 2},
            "model": {"language": {"kv_heads": 2}},
        },
    ),
}


def cases() -> list[Any]:
    """Those that others say little less of run on demand."""
    more = ("tensor 2, without sequence", "every part", "vision on its own")
    return [pytest.param(name, marks=pytest.mark.matrix if name in more else ()) for name in CASES]


@pytest.mark.parametrize("name", cases())
def test_memory_is_that_of_the_rehearsal(name: str, guard: Path) -> None:
    ranks, stages, given = CASES[name]
    sections = {**given, "model": {part: dict(MODEL[part]) for part in MODEL}}
    for part, options in given.get("model", {}).items():
        sections["model"][part] |= options
    train = {"micro_batch": 1, "global_batch": 8 * ranks, **given.get("train", {})}
    data = {"sequence_length": 2048, **given.get("data", {})}
    run = small_run(**{**sections, "data": data, "train": train})
    layout = Layout.of(run.parallel, ranks)
    job = job_of(run, layout)
    for stage in stages:
        rank = layout.rank(Coordinates(tensor=0, data=0, pipeline=stage))
        # As many microbatches as are under way at once.
        num_microbatches = layout.pipeline * run.parallel.virtual
        counted = rehearsed(guard, run, ranks, rank, num_microbatches).step
        foretold = rank_memory(job, stage, FITTED)
        assert foretold.total() == pytest.approx(counted.num_bytes, rel=0.03), (foretold, counted)

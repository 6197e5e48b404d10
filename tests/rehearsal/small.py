"""A small recipe, and rehearsals of it in a process of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_run
from vila_mc.config.run import RunConfig
from vila_mc.rehearsal.one_rank import rehearse_rank
from vila_mc.rehearsal.record import RankRecord


def small_run(**sections: dict[str, Any]) -> RunConfig:
    """Two layers each, in bf16, with a frozen tower; ``sections`` override by section."""
    train: dict[str, Any] = {"precision": "bf16", "trainable": ["connector", "language"]}
    model: dict[str, Any] = {
        "vision": dict(image_size=28, patch_size=7, width=32, layers=2, heads=4, ffn=64),
        "language": dict(
            layers=2, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=131, max_positions=64
        ),
    }
    for name, options in sections.pop("model", {}).items():
        model[name] |= options
    return tiny_run(model=model, train=train | sections.pop("train", {}), **sections)


def rehearsed(
    guard: Path,
    run: RunConfig,
    world_size: int = 1,
    rank: int = 0,
    microbatches: int = 1,
    planted: Callable[[], None] | None = None,
) -> RankRecord:
    """One rank, rehearsed in a forked process; ``planted`` spoils something there first."""
    (text,) = run_ranks(1, _rehearse, guard, run, world_size, rank, microbatches, planted)
    return RankRecord.from_json(text)


def _rehearse(
    guard: Path,
    run: RunConfig,
    world_size: int,
    rank: int,
    microbatches: int,
    planted: Callable[[], None] | None,
) -> bytes:
    if planted is not None:
        planted()
    return rehearse_rank(run, world_size, rank, guard, microbatches).to_json()

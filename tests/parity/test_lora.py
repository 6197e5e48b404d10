"""Adapters learn the same at every layout, and what they stand beside does not learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import Trace
from tests.parity.lora_trace import (
    ALONE,
    DROPPED,
    PACKED,
    PACKED_SEQUENCE,
    PLAIN,
    RECOMPUTE,
    SEQUENCE,
    SOME,
    Sections,
    traces,
    train_and_save,
)
from tests.support.ranks import run_ranks
from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.require_intact import stored_shapes
from vila_mc.config.lora import is_adapter

EXPECTED: dict[str, Sections] = {
    "plain": PLAIN,
    "packed": PACKED,
    "alone": ALONE,
    "some": SOME,
    "dropped": DROPPED,
}
"""What one rank does, for layouts to be compared with."""
LAYOUTS: dict[str, tuple[int, dict[str, Any], list[tuple[str, Sections]]]] = {
    "tp2": (
        2,
        dict(tensor=2),
        [
            ("plain", PLAIN),
            ("plain", SEQUENCE),
            ("packed", PACKED_SEQUENCE),
            ("some", SOME),
            ("dropped", DROPPED),
        ],
    ),
    "dp2-overlap": (2, dict(overlap_grad_reduce=True), [("plain", PLAIN)]),
    "pp2": (2, dict(pipeline=2), [("packed", PACKED), ("alone", RECOMPUTE)]),
    "pp2-virtual2-dedicated": (
        2,
        dict(pipeline=2, virtual=2, vision_placement="dedicated"),
        [("plain", PLAIN)],
    ),
    "tp2-pp2-dp2": (8, dict(tensor=2, pipeline=2), [("plain", PLAIN), ("plain", SEQUENCE)]),
}


@pytest.fixture(scope="module")
def one_rank(seed_checkpoint: Path) -> dict[str, Trace]:
    """The traces of one rank."""
    (found,) = run_ranks(1, traces, seed_checkpoint, {}, list(EXPECTED.values()))
    return dict(zip(EXPECTED, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_learn_what_they_learn_on_one_rank(
    layout: str, seed_checkpoint: Path, one_rank: dict[str, Trace]
) -> None:
    world_size, parallel, variants = LAYOUTS[layout]
    by_rank = run_ranks(world_size, traces, seed_checkpoint, parallel, [v for _, v in variants])
    for index, (name, variant) in enumerate(variants):
        found = [each[index] for each in by_rank]
        assert_every_rank_matches(found, one_rank[name], f"{name} {variant}")


def test_they_learn(one_rank: dict[str, Trace]) -> None:
    for name, trace in one_rank.items():
        assert trace[-1][0] < trace[0][0] * 0.999, name
    assert len({trace[0] for trace in one_rank.values()}) == len(one_rank)


LAYOUT_OF_EACH = [
    (4, dict(tensor=2, pipeline=2, vision_placement="dedicated")),
    (2, dict(pipeline=2)),
    (2, dict(tensor=2)),
]
"""A run saves at the first, then goes on at each."""


def test_adapters_go_on_bit_for_bit_and_are_the_same_at_every_layout(
    seed_checkpoint: Path, tmp_path: Path
) -> None:
    ranks, parallel = LAYOUT_OF_EACH[0]
    whole = run_ranks(ranks, train_and_save, tmp_path / "b", seed_checkpoint, parallel, PLAIN, 4)
    here = tmp_path / "a"
    first = run_ranks(ranks, train_and_save, here, seed_checkpoint, parallel, PLAIN, 2)
    second = run_ranks(ranks, train_and_save, here, here, parallel, PLAIN, 2)
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == whole
    saved = _tensors(here)
    base = _tensors(seed_checkpoint)
    learned = {name for name, tensor in saved.items() if not tensor.equal(base.get(name, NOTHING))}
    assert learned == {name for name in saved if is_adapter(name) or name.startswith("connector.")}
    held = stored_shapes(resolve_checkpoint(here))
    assert not any(key.startswith("language.") and key.endswith("weight") for key in held)
    for ranks, parallel in LAYOUT_OF_EACH[1:]:
        run_ranks(ranks, train_and_save, here, here, parallel, PLAIN, 0)
        again = _tensors(here)
        assert again.keys() == saved.keys()
        assert all(again[name].equal(saved[name]) for name in saved), parallel


NOTHING = torch.zeros(0)


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    newest = resolve_checkpoint(directory)
    return {n: t.read() for n, t in open_whole(newest, Manifest.read(newest)).items()}

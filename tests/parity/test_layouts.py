"""The layout is not part of the mathematics: every layout learns what one rank learns."""

from pathlib import Path

import pytest

from tests.parity.compare import LOSS_TOLERANCE, assert_every_rank_matches
from tests.parity.layout_trace import (
    ALL_PARTS,
    NUM_STEPS,
    TRAINABLES,
    Trace,
    seed_and_trace,
    trace,
)
from tests.support.ranks import run_ranks
from tests.support.tiny import QWEN3

LAYOUTS = {
    "tp2": (2, dict(tensor=2)),
    "tp2-sp": (2, dict(tensor=2, sequence=True)),
    "dp2": (2, dict()),
    "dp2-overlap": (2, dict(overlap_grad_reduce=True)),
    "tp2-pp2-sp": (4, dict(tensor=2, pipeline=2, sequence=True)),
    "pp2-uneven": (2, dict(pipeline=2, layers_per_stage=(1, 3))),
}
PIPELINED = {
    "pp2": (2, dict(pipeline=2)),
    "pp4": (4, dict(pipeline=4)),
    "pp2-virtual2": (2, dict(pipeline=2, virtual=2)),
    "tp2-pp2": (4, dict(tensor=2, pipeline=2)),
    "dp2-tp2-pp2": (8, dict(tensor=2, pipeline=2)),
}
RECOMPUTE = {"recompute": "full"}
BF16 = {"precision": "bf16"}
LAYOUTS |= {
    f"{name}-{placement}": (world_size, {**parallel, "vision_placement": placement})
    for name, (world_size, parallel) in PIPELINED.items()
    for placement in ("shared", "dedicated")
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trace_equals_that_of_one_rank(
    layout: str, seed_checkpoint: Path, single_rank: dict[str, Trace]
) -> None:
    world_size, parallel = LAYOUTS[layout]
    by_rank = run_ranks(world_size, trace, seed_checkpoint, parallel, list(TRAINABLES.values()))
    for index, name in enumerate(TRAINABLES):
        assert_every_rank_matches([traces[index] for traces in by_rank], single_rank[name], name)


def test_the_reference_learns(single_rank: dict[str, Trace]) -> None:
    for reference in single_rank.values():
        assert len(reference) == NUM_STEPS
        assert reference[-1][0] < reference[0][0] * 0.999
        assert all(grad_norm > 1e-3 for _, grad_norm in reference)


def test_a_mean_of_means_is_caught(seed_checkpoint: Path, single_rank: dict[str, Trace]) -> None:
    by_rank = run_ranks(2, _planted_trace, seed_checkpoint)
    expected = single_rank["everything"]
    with pytest.raises(AssertionError):
        assert_every_rank_matches(by_rank, expected)
    last, expected_last = by_rank[0][-1][0], expected[-1][0]
    assert abs(last - expected_last) > 10 * LOSS_TOLERANCE * expected_last  # in the loss, too


def _planted_trace(seed_checkpoint: Path) -> Trace:
    (planted,) = trace(seed_checkpoint, {}, plant_mean_of_means=True)
    return planted


def test_recomputation_changes_nothing(
    seed_checkpoint: Path, single_rank: dict[str, Trace]
) -> None:
    world_size, parallel = LAYOUTS["pp2-shared"]
    by_rank = run_ranks(
        world_size, trace, seed_checkpoint, parallel, list(TRAINABLES.values()), RECOMPUTE
    )
    for index, name in enumerate(TRAINABLES):
        assert_every_rank_matches([traces[index] for traces in by_rank], single_rank[name], name)


def test_bf16_is_near(seed_checkpoint: Path, single_rank: dict[str, Trace]) -> None:
    world_size, parallel = LAYOUTS["tp2-pp2-shared"]
    by_rank = run_ranks(world_size, trace, seed_checkpoint, parallel, [ALL_PARTS], BF16)
    losses, norms = zip(*single_rank["everything"], strict=True)
    for (bf16,) in by_rank:
        assert bf16 == by_rank[0][0]
        assert [loss for loss, _ in bf16] == pytest.approx(losses, rel=2e-3)
        assert [norm for _, norm in bf16] == pytest.approx(norms, rel=3e-2)
        assert bf16 != single_rank["everything"]


QWEN2 = {
    "vision": dict(
        family="siglip", image_size=30, patch_size=7, width=32, layers=3, heads=4, ffn=64
    ),
    "language": dict(
        family="qwen2",
        tied_embeddings=True,
        layers=4,
        width=64,
        ffn=96,
        heads=4,
        kv_heads=2,
        vocab_size=131,
        max_positions=64,
    ),
}


@pytest.mark.parametrize("layout", ["tp2-pp2-sp", "pp2-virtual2-dedicated"])
def test_a_tied_embedding_learns_as_one_whatever_the_stages(
    layout: str, tied_seed: tuple[Path, Trace]
) -> None:
    seed, expected = tied_seed
    world_size, parallel = LAYOUTS[layout]
    by_rank = run_ranks(world_size, trace, seed, parallel, model=QWEN2)
    assert_every_rank_matches([traces[0] for traces in by_rank], expected, layout)


def test_a_vocabulary_grows_alike_at_every_layout(tied_seed: tuple[Path, Trace]) -> None:
    seed, unlike = tied_seed
    grown = QWEN2 | {"language": QWEN2["language"] | {"vocab_size": 300}}
    ((expected,),) = run_ranks(1, trace, seed, {}, model=grown)
    assert expected[0][0] > unlike[0][0] * (1 + 1e-3)  # new rows compete with the others
    world_size, parallel = LAYOUTS["tp2-pp2-sp"]  # one shard has new rows alone
    by_rank = run_ranks(world_size, trace, seed, parallel, model=grown)
    assert_every_rank_matches([traces[0] for traces in by_rank], expected)


@pytest.mark.parametrize("layout", ["tp2", "tp2-pp2-sp"])
def test_norms_of_queries_and_keys_learn_alike_at_every_layout(
    layout: str, qwen3_seed: tuple[Path, Trace]
) -> None:
    seed, expected = qwen3_seed
    world_size, parallel = LAYOUTS[layout]
    by_rank = run_ranks(world_size, trace, seed, parallel, model=QWEN3)
    assert_every_rank_matches([traces[0] for traces in by_rank], expected, layout)


@pytest.fixture(scope="module")
def qwen3_seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """A Qwen3: weights, and the trace of one rank."""
    directory = tmp_path_factory.mktemp("qwen3")
    (expected,) = run_ranks(1, seed_and_trace, directory, QWEN3)
    return directory, expected


@pytest.fixture(scope="module")
def tied_seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """SigLIP and a Qwen2 whose embedding is also its output layer: weights, and the trace."""
    directory = tmp_path_factory.mktemp("tied")
    (expected,) = run_ranks(1, seed_and_trace, directory, QWEN2)
    return directory, expected

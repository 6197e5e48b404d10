"""Every connector, whatever the layout and the placement of vision, learns what one rank learns.

One start of ranks tries all connectors of a layout. Two layouts by default; the others with
``bash tests/run.sh -m matrix tests/parity/test_connector_layouts.py``.
"""

from pathlib import Path

import pytest
import torch

from tests.parity.compare import assert_every_rank_matches
from tests.parity.import_ranks import load_and_save
from tests.parity.layout_trace import Trace, traces_of_models, write_seed_checkpoint
from tests.support.connectors import CASES, options_of
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.config.parallel import ParallelConfig
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

NUM_STEPS = 2
TINY = {
    "vision": dict(image_size=21, patch_size=7, width=32, layers=2, heads=4, ffn=64),
    "language": dict(
        layers=3, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=131, max_positions=64
    ),
}
"""With 3 x 3 patches."""
ALIKE = ("mlp1x_gelu", "mlp2x_gelu", "mlp_downsample_3x3_s2_new by columns")
"""Cases that compute what another does: names for one thing, and one token in any order."""
NAMES = tuple(name for name in CASES if name not in ALIKE)
SPLIT = dict(connector_placement="split")
"""Tensor-parallel ranks share its matrices; connectors as small as these are whole by default."""
LAYOUTS = {
    "tp2-split": (2, dict(tensor=2, **SPLIT)),
    "tp2-sp": (2, dict(tensor=2, sequence=True)),
    "pp2-dedicated": (2, dict(pipeline=2, vision_placement="dedicated")),
}
MATRIX = {
    "tp2": (2, dict(tensor=2)),
    "dp2-overlap": (2, dict(overlap_grad_reduce=True)),
    "pp2-shared": (2, dict(pipeline=2)),
    "tp2-pp2-sp-shared": (4, dict(tensor=2, pipeline=2, sequence=True)),
    "tp2-sp-split": (2, dict(tensor=2, sequence=True, **SPLIT)),
    "dp2-tp2-split-overlap": (4, dict(tensor=2, overlap_grad_reduce=True, **SPLIT)),
    "tp2-pp2-sp-split": (4, dict(tensor=2, pipeline=2, sequence=True, **SPLIT)),
    "tp2-pp2-dedicated": (4, dict(tensor=2, pipeline=2, vision_placement="dedicated")),
    "pp2-virtual2-dedicated": (
        2,
        dict(pipeline=2, virtual=2, vision_placement="dedicated"),
    ),
    "dp2-tp2-pp2-shared": (8, dict(tensor=2, pipeline=2)),
}


MODELS = {name: TINY | {"connector": options_of(name)} for name in NAMES}


def _write_seeds(directory: Path) -> None:
    for name, model in MODELS.items():
        write_seed_checkpoint(directory / name, model)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("connectors")
    run_ranks(1, _write_seeds, directory)
    return directory


@pytest.fixture(scope="module")
def expected(seeds: Path) -> dict[str, Trace]:
    """The trace of one rank, by connector."""
    (traces,) = run_ranks(1, traces_of_models, seeds, {}, MODELS, NUM_STEPS)
    return traces  # type: ignore[no-any-return]


def test_no_two_connectors_learn_alike(expected: dict[str, Trace]) -> None:
    for name in NAMES:
        assert expected[name][-1][0] < expected[name][0][0] * 0.999, name
    assert len({trace[-1] for trace in expected.values()}) == len(NAMES)


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.matrix) for name in MATRIX)]
)
def test_every_connector_learns_what_one_rank_learns(
    layout: str, seeds: Path, expected: dict[str, Trace]
) -> None:
    world_size, parallel = (LAYOUTS | MATRIX)[layout]
    by_rank = run_ranks(world_size, traces_of_models, seeds, parallel, MODELS, NUM_STEPS)
    for name in NAMES:
        traces = [by_name[name] for by_name in by_rank]
        assert_every_rank_matches(traces, expected[name], f"{layout} {name}")


@pytest.mark.parametrize("name", ["qformer", "mlp_downsample_3x3_fix"])
def test_ranks_that_share_a_connector_save_it_whole(name: str, seeds: Path, tmp_path: Path) -> None:
    run_ranks(2, load_and_save, seeds / name, tmp_path, dict(tensor=2, **SPLIT))
    before, after = (
        open_checkpoint(directory, Manifest.read(directory).config.model)
        for directory in (resolve_checkpoint(seeds / name), resolve_checkpoint(tmp_path))
    )
    assert before.keys() == after.keys()
    for weight, values in before.items():
        assert torch.equal(after[weight].read(), values.read()), weight


def test_a_qformer_learns_with_any_number_of_queries() -> None:
    """Of a Q-Former in a tutorial's ablation: the loss falls, and every query has moved."""
    (learned,) = run_ranks(1, _learned_by_queries)
    assert list(learned) == list(QUERIES)
    for (first, *_, last), moved in learned.values():
        assert last < first * 0.99
        assert moved > 1e-4  # decay alone would move it by less than 1e-6


QUERIES = (16, 32, 64, 144)


def _learned_by_queries() -> dict[int, tuple[list[float], float]]:
    """Losses of the steps, and by how much the query that moved least has moved."""
    learned = {}
    with distributed(ParallelConfig(), seed=1) as ranks:
        for queries in QUERIES:
            connector = {**options_of("qformer"), "queries": queries}
            language = TINY["language"] | {"max_positions": 320}
            config = tiny_run(
                model=TINY | {"connector": connector, "language": language},
                data={"sequence_length": 320},
            )
            trainer = Trainer(config, ranks, build_stages(config, ranks))
            batches = tiny_microbatches(config, 0, 1)
            weight = trainer.stages[0].connector.queries.weight
            before = weight.detach().clone()
            losses = [trainer.step(batches).loss for _ in range(4)]
            moved = (weight.detach() - before).abs().amax(1).min()
            learned[queries] = losses, moved.item()
    return learned

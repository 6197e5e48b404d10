"""How many rows a forward pass takes where nobody says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.load import load_run
from vila_mc.config.recipe import PRESETS
from vila_mc.config.run import RunConfig
from vila_mc.topology.layout import Layout
from vila_mc.topology.micro_batch import MOST_KEPT, choose_micro_batch, numbers_kept
from vila_mc.train.micro_batch import with_micro_batch

EXAMPLES = Path(__file__).parents[3] / "examples"


def _run(output: Path, parallel: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    options = {"output": str(output), "micro_batch": None, "global_batch": 64, **train}
    return tiny_run(parallel=parallel or {}, train=options)


@pytest.mark.parametrize(
    ("world_size", "parallel", "train", "rows"),
    [
        (1, {}, {}, 64),
        (4, {}, {}, 16),
        (2, {"tensor": 2}, {}, 64),
        (2, {"pipeline": 2}, {}, 8),  # 8 microbatches
        (2, {"pipeline": 2, "virtual": 2}, {"global_batch": 66}, 3),  # 22, a multiple of 2
        (1, {}, {"global_batch": 2053}, 1),  # a prime that does not fit whole
        (1, {}, {"global_batch": 2**20}, 256),
    ],
)
def test_rows_that_fit(
    world_size: int, parallel: dict[str, Any], train: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    config = _run(tmp_path, parallel, **train)
    layout = Layout.of(config.parallel, world_size)
    chosen, line = with_micro_batch(config, layout)
    chosen.check_world(world_size)
    assert chosen.train.micro_batch == rows
    assert line.startswith(f"train.micro_batch {rows}, which was not given: the most rows that")
    kept = max(numbers_kept(config, layout, rank) for rank in range(layout.pipeline))
    assert rows * kept <= MOST_KEPT
    assert f"about {kept:,} each" in line


def test_blocks_of_a_connector_keep_what_the_planner_counts() -> None:
    kept = [
        numbers_kept(config, Layout.of(config.parallel, 1), 0)
        for layers in (1, 3)
        for config in [
            load_run([], {"model.connector.kind": "transformer", "model.connector.layers": layers})
        ]
    ]
    # What autograd holds: config/connector_memory.py. Rows of 4096 hold 7 such images.
    assert kept[1] - kept[0] == 2 * (576 * 7) * (16 * 1024 + 4 + 16)


def test_one_row_of_a_large_model_is_enough() -> None:
    config = load_run([EXAMPLES / "pretrain_7b.yaml"], {"train.micro_batch": "none"})
    rows, why = choose_micro_batch(config, Layout.of(config.parallel, 128))
    assert rows == 1
    assert why.startswith("one row keeps about ")


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_divides_among_data_parallel_ranks(name: str, world_size: int) -> None:
    given = load_run([Path(f"preset:{name}")], {"parallel.tensor": 1, "parallel.sequence": False})
    config, _ = with_micro_batch(given, Layout.of(given.parallel, world_size))
    config.check_world(world_size)


@pytest.mark.parametrize(
    ("options", "is_less"),
    [
        ({"train": {"recompute": "full"}}, True),
        ({"train": {"trainable": ["connector", "language"]}}, True),
        ({"parallel": {"tensor": 2}}, True),
        ({"data": {"sequence_length": 64}}, False),
        ({"model": {"language": {"vocab_size": 2000}}}, False),
    ],
)
def test_what_a_row_keeps_follows_the_recipe(options: dict[str, Any], is_less: bool) -> None:
    plain, other = tiny_run(), tiny_run(**{k: v for k, v in options.items() if k != "model"})
    if "model" in options:
        language = replace(other.model.language, **options["model"]["language"])
        other = replace(other, model=replace(other.model, language=language))
    kept = [
        numbers_kept(config, Layout.of(config.parallel, config.parallel.tensor), 0)
        for config in (plain, other)
    ]
    assert (kept[1] < kept[0]) == is_less
    assert kept[1] != kept[0]


def test_a_given_one_is_kept(tmp_path: Path) -> None:
    config = _run(tmp_path, micro_batch=4)
    assert with_micro_batch(config, Layout(1, 1, 1)) == (config, "")


@pytest.mark.parametrize(
    ("layout", "train", "rows"),
    [
        (Layout(1, 1, 2), {}, 2),
        (Layout(1, 1, 1), {}, 64),
        (Layout(1, 1, 2), {"global_batch": 32}, 16),
        (Layout(1, 1, 2), {"micro_batch": 8}, 8),
    ],
)
def test_a_run_that_goes_on_as_it_was_keeps_its_own(
    layout: Layout, train: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    directory = tmp_path / checkpoint_name(3)
    directory.mkdir()
    before = _run(tmp_path, micro_batch=2)
    Manifest(step=3, samples_seen=24, config=before, layout=Layout(1, 1, 2), versions={}).write(
        directory
    )
    config, line = with_micro_batch(_run(tmp_path, **train), layout)
    assert config.train.micro_batch == rows
    assert line.endswith("as before") == (rows == 2)

"""What is held out stays out: of every run, blend and pass."""

import dataclasses

import numpy as np
import pytest

from tests.support.launching import write_recipe
from tests.support.tiny_data import write_dataset
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.held_out import split
from vila_mc.data.batches.loader import TrainingData
from vila_mc.errors import ConfigError, DataError
from vila_mc.train.passes import passes_line, validation_line


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 2**20 + 3])
def test_both_parts_are_the_whole(size: int) -> None:
    kept, held = split(size, 0.1)
    numbers = kept.numbers(np.arange(kept.size))
    assert (np.diff(numbers) > 0).all()
    both = np.concatenate([numbers, held.numbers(np.arange(held.size))])
    assert (np.sort(both) == np.arange(size)).all()
    if size >= 1000:
        assert held.size == pytest.approx(0.1 * size, rel=0.2)


def test_a_sample_moves_neither_with_more_samples_nor_out_of_a_greater_share() -> None:
    few, more = (set(split(size, 0.1)[1].held.tolist()) for size in (500, 900))
    assert few == {number for number in more if number < 500}
    assert few < set(split(500, 0.2)[1].held.tolist())
    assert split(500, 0.0)[1].size == 0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("set")
    recipe = write_recipe(folder / "recipe.yaml", *write_dataset(folder, 30))
    return load_run([recipe], {"data.held_out": 0.2, "data.workers": 0})


def _data(config: RunConfig) -> TrainingData:
    return TrainingData(
        config.data,
        config.model,
        micro_batch=1,
        global_batch=4,
        data_rank=0,
        data_size=1,
        needs_images=True,
    )


@pytest.mark.parametrize("packing", [False, True])
def test_training_and_validation_read_the_two_parts(config: RunConfig, packing: bool) -> None:
    run = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=packing))
    held = set(split(30, 0.2)[1].held.tolist())
    with _data(run) as data:
        learnt, position = set(), 0
        while position < 60:
            step = data.step(position)
            for names in data.names(position):
                learnt |= {int(name.rpartition("[")[2][:-1]) for name in names}
            position = step.samples_seen
        assert learnt == set(range(30)) - held
        rows = [row for rows in data._validation_rows() for row in rows]
        assert {sample for row in rows for _, sample in row} == held
        assert sum(batch.num_samples for batches in data.validation() for batch in batches) == len(
            held
        )
        assert f"{30 - len(held)} samples" in passes_line(run, data.readers)
        line = validation_line(run, data.validation_readers)
        assert line.endswith(f"on {len(held)} samples held out of pairs")


def test_a_share_that_leaves_nothing_is_refused(config: RunConfig) -> None:
    data = dataclasses.replace(config.data, held_out=1e-6)
    with pytest.raises(DataError, match=r"held_out 1e-06 holds out none of the 30 .* Raise it"):
        _data(dataclasses.replace(config, data=data))
    with pytest.raises(ConfigError, match=r"data\.held_out is 0\.6; .* between 0 and 0\.5"):
        load_run([], {"data.held_out": 0.6})

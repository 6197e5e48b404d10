"""What is rehearsed of real data is what the loader makes of it."""

from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.small import small_run
from tests.support.tiny_data import VOCABULARY, write_dataset
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.errors import ConfigError
from vila_mc.flow import Microbatch
from vila_mc.rehearsal.batch import full_rows, microbatch_of
from vila_mc.rehearsal.first_steps import batch_of_a_rank

STEPS, DATA_RANKS = 4, 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tokenizer and a set of 24 samples."""
    return write_dataset(tmp_path_factory.mktemp("data"))


def run_of(dataset: tuple[Path, Path], **data: Any) -> RunConfig:
    tokenizer, prefix = dataset
    return small_run(
        model={"language": {"vocab_size": VOCABULARY, "max_positions": 128}},
        data={"tokenizer": str(tokenizer), "blend": [{"path": str(prefix)}], **data},
        train={"global_batch": 8, "micro_batch": 2, "steps": 100},
    )


def loaded(run: RunConfig) -> list[Microbatch]:
    """Every microbatch of the first steps, of all data-parallel ranks."""
    found = []
    for rank in range(DATA_RANKS):
        sizes = dict(micro_batch=2, global_batch=8, data_rank=rank, data_size=DATA_RANKS)
        with TrainingData(run.data, run.model, **sizes, needs_images=True) as data:
            position = 0
            for _ in range(STEPS):
                step = data.step(position)
                position = step.samples_seen
                found += step.microbatches
    return found


@pytest.mark.parametrize(
    "data",
    [{"sequence_length": 64}, {"sequence_length": 20}, {"sequence_length": 128, "packing": True}],
    ids=["rows with padding", "samples that are cut", "packed"],
)
def test_the_fullest_microbatch_is_that_of_the_loader(
    data: dict[str, Any], dataset: tuple[Path, Path]
) -> None:
    run = run_of(dataset, workers=0, **data)
    batches = loaded(run)
    fullest = max(batches, key=lambda batch: (len(batch.images), batch.filled_positions()))
    found = batch_of_a_rank(run, DATA_RANKS, STEPS)
    assert not found.is_synthetic
    made = microbatch_of(run, found.rows, needs_images=True)
    assert made.images.shape == fullest.images.shape
    assert made.filled_positions() == fullest.filled_positions()
    same = [
        batch
        for batch in batches
        if (batch.sample_lengths, batch.entries) == (made.sample_lengths, made.entries)
    ]
    assert any(len(batch.images) == len(fullest.images) for batch in same)
    mean = sum(len(batch.images) for batch in batches) / len(batches)
    assert f"of the first {STEPS} steps of data.blend" in found.origin
    assert found.origin.endswith(f"the mean one has {mean:.1f}")


def test_without_data_rows_are_full(dataset: tuple[Path, Path]) -> None:
    run = run_of(dataset, sequence_length=64)
    asked = batch_of_a_rank(run, DATA_RANKS, 0)
    assert (asked.is_synthetic, asked.rows) == (True, full_rows(run))
    gone = run_of((dataset[0], dataset[1].with_name("gone")))
    said = batch_of_a_rank(gone, DATA_RANKS, STEPS).origin
    assert "synthetic, as " in said
    assert "gone.manifest.json is not here" in said


def test_data_that_cannot_be_used_is_refused(dataset: tuple[Path, Path]) -> None:
    run = small_run(data={"blend": [{"path": str(dataset[1])}]})
    with pytest.raises(ConfigError, match=r"data\.tokenizer is not set"):
        batch_of_a_rank(run, DATA_RANKS, STEPS)

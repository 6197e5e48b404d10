"""What every parity test of layouts starts from and is compared with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.parity.layout_trace import TRAINABLES, Trace, trace, write_seed_checkpoint
from tests.support.ranks import run_ranks
from tests.support.without_gpu import without_gpu


@pytest.fixture(scope="session")
def seed_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that every layout starts from."""
    directory = tmp_path_factory.mktemp("seed")
    run_ranks(1, write_seed_checkpoint, directory)
    return directory


@pytest.fixture(scope="session")
def single_rank(seed_checkpoint: Path) -> dict[str, Trace]:
    """The trace of one rank, by what is trained."""
    (traces,) = run_ranks(1, trace, seed_checkpoint, {}, list(TRAINABLES.values()))
    return dict(zip(TRAINABLES, traces, strict=True))


@pytest.fixture(scope="module")
def _whole_products() -> Iterator[None]:
    """Of fp32 matrices on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a machine with a GPU, weights that its CPU wrote and all traces start from."""
    directory: Path = tmp_path_factory.mktemp("seed")
    without_gpu(write_seed_checkpoint, directory)
    return directory


@pytest.fixture(scope="module")
def on_cpu(seed: Path) -> dict[str, Trace]:
    """The trace of a CPU, by what is trained."""
    traces = without_gpu(trace, seed, {}, list(TRAINABLES.values()))
    return dict(zip(TRAINABLES, traces, strict=True))

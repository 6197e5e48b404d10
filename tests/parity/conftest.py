"""What every parity test of layouts starts from and is compared with."""

from pathlib import Path

import pytest

from tests.parity.layout_trace import TRAINABLES, Trace, trace, write_seed_checkpoint
from tests.support.ranks import run_ranks


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

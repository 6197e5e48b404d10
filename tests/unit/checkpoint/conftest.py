"""Checkpoints of the tiny model, written once by one rank."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


@contextmanager
def trainer(**sections: Any) -> Iterator[Trainer]:
    """A trainer of the tiny model in this process."""
    config = tiny_run(**sections)
    with distributed(config.parallel, seed=config.train.seed) as ranks:
        yield Trainer(config, ranks, build_stages(config, ranks))


def save(trainer: Trainer, step: int) -> Path:
    """Save what a trainer holds as the state after ``step`` steps."""
    manifest = Manifest(
        step=step,
        samples_seen=8 * step,
        config=trainer.config,
        layout=trainer.ranks.layout,
        versions=versions(),
    )
    return PendingSave(
        manifest, trainer.ranks, trainer.stages, trainer.optimizer, in_background=False
    ).finish()


@pytest.fixture(scope="session")
def _one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one-step")
    with trainer(train={"output": str(output)}) as made:
        made.step(tiny_microbatches(made.config, 0, 1))
        return save(made, step=1)


@pytest.fixture
def checkpoint(_one_step: Path, tmp_path: Path) -> Path:
    """A whole checkpoint after one step, to be spoiled at will."""
    return shutil.copytree(_one_step, tmp_path / "saved" / _one_step.name)

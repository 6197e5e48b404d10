"""SIGKILL at any moment costs steps, never a checkpoint, and changes nothing in what is learnt."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LAYOUT
from tests.support.forked import train, training
from tests.support.launching import (
    Finished,
    finish,
    ranks_of,
    steps_done,
    trace_of,
    wait_until,
)
from tests.support.ranks import ranks_that_may_die
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.checkpoint.manifest import FileRecord, Manifest
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.errors import ExitCode
from vila_mc.train.rank import train_rank

NUM_KILLS = 20
NUM_STEPS = 100


def _run(recipe: Path, output: Path, in_background: bool, save_every: int = 2) -> RunConfig:
    options = {
        "train.output": str(output),
        "train.steps": NUM_STEPS,
        "train.save_every": save_every,
        "train.async_save": in_background,
        "train.timeout_minutes": 0.5,
        "parallel.pipeline": 2,
    }
    return load_run([recipe], options)


def _shards(checkpoint: Path) -> dict[str, str]:
    """Checksums of everything that training computes: weights, optimizer, random generators."""
    files = Manifest.read(checkpoint).files
    return {name: record.sha256 for name, record in files.items() if name.endswith(".distcp")}


def _assert_usable(checkpoints: Sequence[Path]) -> None:
    for checkpoint in checkpoints:
        for name, record in Manifest.read(checkpoint).files.items():
            assert FileRecord.of(checkpoint / name) == record


def _partials(output: Path) -> set[int]:
    with os.scandir(output) as entries:
        return {entry.inode() for entry in entries if entry.name.startswith(".step-")}


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(recipe: Path, tmp_path: Path) -> None:
    unbroken, output = tmp_path / "unbroken", tmp_path / "killed"
    output.mkdir()
    _train_to_end(_run(recipe, unbroken, in_background=False, save_every=NUM_STEPS))
    choose = random.Random(20)
    during_saves = 0
    for number in range(NUM_KILLS):
        _kill_a_rank(_run(recipe, output, in_background=number % 2 == 0), choose)
        during_saves += bool(_partials(output))
        _assert_usable(whole_checkpoints(output))
    assert during_saves >= 5
    _train_to_end(_run(recipe, output, in_background=True))
    assert trace_of(output) == trace_of(unbroken)
    assert _shards(whole_checkpoints(output)[-1]) == _shards(whole_checkpoints(unbroken)[-1])


def _kill_a_rank(run: RunConfig, choose: random.Random) -> None:
    output = run.train.output
    before, partials = whole_checkpoints(output), _partials(output)
    with ranks_that_may_die(2, train_rank, run) as ranks:
        if choose.random() < 0.5:
            wait_until(lambda: bool(_partials(output) - partials), "a save that begins")
        else:
            wait_until(lambda: whole_checkpoints(output) != before, "a new checkpoint")
        time.sleep(choose.uniform(0.0, 0.15))
        victim = choose.choice(ranks)
        assert victim.pid is not None
        assert victim.is_alive(), "the run was over before it could be killed"
        os.kill(victim.pid, signal.SIGKILL)


def _train_to_end(run: RunConfig) -> None:
    with ranks_that_may_die(2, train_rank, run) as ranks:
        for rank in ranks:
            rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [ExitCode.OK, ExitCode.OK]


@pytest.mark.slow
def test_kills_of_the_launcher_and_its_ranks_change_nothing(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path, "--train.save_every", 2)
    choose = random.Random(4)
    for victim in ("launcher", 0, 1):
        _kill_through_launcher(victim, command, tmp_path, choose)
        _assert_usable(whole_checkpoints(tmp_path))
    assert train(*command).code == ExitCode.OK
    assert trace_of(tmp_path) == trace_of(unbroken[1])
    assert _shards(whole_checkpoints(tmp_path)[-1]) == _shards(whole_checkpoints(unbroken[1])[-1])


def _kill_through_launcher(
    victim: Any, command: tuple[object, ...], output: Path, choose: random.Random
) -> None:
    before = steps_done(output)
    with training(*command) as process:
        wait_until(lambda: steps_done(output) > before, "a step", of=process)
        ranks = ranks_of(process)
        time.sleep(choose.uniform(0.0, 0.1))
        if victim == "launcher":
            process.kill()
            wait_until(lambda: not any(rank.is_running() for rank in ranks), "the end of the ranks")
        else:
            ranks[victim].kill()
            finish(process)

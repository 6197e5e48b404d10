"""A run starts again by itself after a fault, and ends by itself before its time is over."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import LAYOUT
from tests.support.forked import training
from tests.support.launching import (
    REPOSITORY,
    Finished,
    finish,
    python_path,
    ranks_of,
    restarts_before_each_start,
    steps_done,
    trace_of,
    wait_until,
)
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.errors import ExitCode
from vila_mc.observe.history import End, read_history
from vila_mc.train.standing import standing_of

MANY_STEPS = 100_000
A_START = 240.0
"""Seconds that a busy machine may take to start ranks again."""


def test_a_killed_rank_is_started_again_and_the_run_learns_the_same(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path, "--train.save_every", 2)
    with training(*command, "--max-restarts", 1) as process:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks_of(process)[1].kill()
        run = finish(process, A_START)
    assert run.code == ExitCode.OK, run.err
    assert "rank 1 was killed by SIGKILL" in run.err
    assert "restart 1 of 1 in 2 s" in run.err
    assert trace_of(tmp_path) == trace_of(unbroken[1])
    assert restarts_before_each_start(tmp_path) == [0, 1]
    ends = [event for event in read_history(tmp_path) if isinstance(event, End)]
    assert [end.code for end in ends] == [ExitCode.FAULT, ExitCode.OK]
    standing = standing_of(tmp_path)
    assert (standing.state, standing.starts, standing.restarts) == ("done", 2, 1)


def test_a_run_ends_before_the_job_of_slurm(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the margin is left, so that the clock asks in the first step.
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    steps = ("--train.steps", MANY_STEPS)
    with training("--config", recipe, "--ranks", 1, "--train.output", tmp_path, *steps) as process:
        run = finish(process)
    assert run.code == ExitCode.REQUEUE, run.err
    assert "stops and saves at " in run.out
    assert "stopped and saved; the same command goes on from there" in run.err
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000001"]
    assert standing_of(tmp_path).state.startswith("stopped for its scheduler")


@pytest.mark.slow
def test_ranks_of_torchrun_are_started_again(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    command = (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *("--max-restarts", 1, "tools/train.py", "--config", recipe, "--parallel.pipeline", 2),
        *("--train.output", tmp_path, "--train.save_every", 2),
    )
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks_of(process)[1].kill()
        said, _ = process.communicate(timeout=A_START)
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
    assert process.returncode == 0, said
    assert trace_of(tmp_path) == trace_of(unbroken[1])
    assert restarts_before_each_start(tmp_path) == [0, 1]

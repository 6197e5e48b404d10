"""What goes wrong in a real run ends it in time, with one honest line and nothing lost."""

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from tests.e2e.conftest import LAYOUT
from tests.support import launching
from tests.support.forked import train, training
from tests.support.launching import (
    NUM_STEPS,
    Finished,
    finish,
    kill_all,
    ranks_of,
    restarts_before_each_start,
    steps_done,
    trace_of,
    wait_until,
)
from vila_mc.checkpoint.directories import resolve_checkpoint, whole_checkpoints
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.whole import whole_model
from vila_mc.errors import ExitCode

MANY_STEPS = 100_000


def _assert_one_error(run: Finished, *parts: str) -> None:
    """Exit code 2 and, besides warnings, a single line on stderr that says ``parts``."""
    assert run.code == ExitCode.USER_ERROR, run.err
    lines = _without_warnings(run.err)
    assert len(lines) == 1, run.err
    assert lines[0].startswith("error: "), run.err
    for part in parts:
        assert part in lines[0]


def _without_warnings(text: str) -> list[str]:
    """Warnings are about the machine, such as that native code is not built."""
    return [line for line in text.splitlines() if not line.startswith("warning: ")]


def test_an_unbroken_run(unbroken: tuple[Finished, Path]) -> None:
    run, output = unbroken
    assert run.code == ExitCode.OK, run.err
    assert _without_warnings(run.err) == []
    assert "random weights (train.seed 42) for vision, connector, language" in run.out
    assert [step[0] for step in trace_of(output)] == list(range(1, NUM_STEPS + 1))
    assert [path.name for path in whole_checkpoints(output)] == ["step-00000020", "step-00000030"]
    losses = [step[1] for step in trace_of(output)]
    assert losses[-1] < losses[0]
    assert not list(output.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--ranks", 3, "--parallel.tensor", 2), ("3 ranks do not divide", "multiple of 2")),
        (
            ("--ranks", 1, "--parallel.tensr", 2),
            ("--parallel.tensr", "Did you mean --parallel.tensor"),
        ),
        (("--ranks", 1, "--train.load", "/nowhere"), ("there is no checkpoint in /nowhere",)),
        (("--ranks", 0), ("--ranks is 0",)),
        (("--ranks", 1, "--nodes", 2), ("without --rendezvous the machines cannot meet",)),
    ],
    ids=["world size", "unknown option", "missing checkpoint", "no ranks", "no rendezvous"],
)
def test_refused_before_launch(
    arguments: tuple[object, ...], parts: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    run = launching.train("--config", recipe, "--train.output", tmp_path / "out", *arguments)
    _assert_one_error(run, *parts)
    assert run.out == ""
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset(recipe: Path, tmp_path: Path) -> None:
    blend = f"[{{path: {tmp_path / 'gone'}}}]"
    run = train(
        "--config", recipe, *LAYOUT, "--train.output", tmp_path / "out", "--data.blend", blend
    )
    _assert_one_error(run, str(tmp_path / "gone"))


def test_a_checkpoint_of_another_shape(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    run = train(
        *("--config", recipe, "--ranks", 1, "--train.output", tmp_path / "out"),
        *("--train.load", unbroken[1], "--model.language.ffn", 128),
    )
    _assert_one_error(
        run,
        "model.language.ffn: checkpoint 96, run 128",
        "train.load_parts [vision, connector] to start language from train.seed",
    )


def test_a_vocabulary_grows_when_it_is_loaded_and_never_on_resume(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    command = (
        *("--config", recipe, *LAYOUT, "--train.output", tmp_path / "out", "--train.steps", 1),
        *("--train.load", unbroken[1], "--model.language.vocab_size"),
    )
    _assert_one_error(train(*command, 399), "vocab_size: checkpoint 400, run 399", "never shrinks")
    run = train(*command, 402)
    assert run.code == ExitCode.OK, run.err
    source = resolve_checkpoint(unbroken[1])
    assert f"vision, connector, language from {source}, after step 30 of pretrain; " in run.out
    line = "the vocabulary grows from 400 to 402 tokens: new rows are the mean of the others"
    assert run.out.splitlines().count(line) == 1
    _assert_one_error(train(*command, 403), "vocab_size: checkpoint 402, run 403")


def test_an_output_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    output = tmp_path / "file" / "out"
    _assert_one_error(
        train("--config", recipe, "--ranks", 1, "--train.output", output), str(tmp_path / "file")
    )


def test_ctrl_c_saves_and_the_same_command_goes_on(
    recipe: Path, unbroken: tuple[Finished, Path], tmp_path: Path
) -> None:
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path)
    with training(*command) as process:
        wait_until(lambda: steps_done(tmp_path) >= 3, "step 3", of=process)
        process.send_signal(signal.SIGINT)
        stopped = finish(process)
    assert stopped.code == ExitCode.INTERRUPTED, stopped.err
    assert "Traceback" not in stopped.err
    (checkpoint,) = whole_checkpoints(tmp_path)[-1:]
    step = Manifest.read(checkpoint).step
    assert 3 <= step < NUM_STEPS
    assert step == steps_done(tmp_path)

    resumed = train(*command)
    assert resumed.code == ExitCode.OK, resumed.err
    assert f"resuming after step {step} from {checkpoint}" in resumed.out
    assert trace_of(tmp_path) == trace_of(unbroken[1])


def test_who_cannot_wait_for_a_long_step_presses_ctrl_c_again(recipe: Path, tmp_path: Path) -> None:
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path, "--train.steps", MANY_STEPS)
    with training(*command) as process:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks = ranks_of(process)
        for rank in ranks:
            rank.suspend()
        wait_until(
            lambda: all(rank.status() == psutil.STATUS_STOPPED for rank in ranks), "they stand"
        )

        def press_while_they_stand() -> bool:
            with suppress(psutil.NoSuchProcess):
                if any(rank.status() == psutil.STATUS_STOPPED for rank in ranks):
                    process.send_signal(signal.SIGINT)
                    return False
            return True

        wait_until(press_while_they_stand, "the end of the ranks")
        run = finish(process)
        assert not any(rank.is_running() for rank in ranks)
    assert run.code == ExitCode.INTERRUPTED, run.err
    heard, ended = _without_warnings(run.err)
    assert heard.startswith(
        "stopping: every rank finishes its step or validation, and saves; Ctrl-C again"
    )
    assert ended.startswith("ended at once")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run(rank: int, recipe: Path, tmp_path: Path) -> None:
    steps = ("--train.steps", MANY_STEPS, "--train.save_every", MANY_STEPS)
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path, *steps)
    with training(*command) as process:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks = ranks_of(process)
        assert len(ranks) == 2
        ranks[rank].kill()
        started = time.monotonic()
        run = finish(process)
        assert time.monotonic() - started < 45
        assert not any(other.is_running() for other in ranks)
    assert run.code == ExitCode.FAULT, run.err
    assert f"rank {rank} was killed by SIGKILL" in _one_error(run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named_and_not_who_waits_for_it(
    rank: int, recipe: Path, tmp_path: Path
) -> None:
    steps = ("--train.steps", MANY_STEPS, "--train.save_every", MANY_STEPS)
    options = ("--train.output", tmp_path, *steps, "--train.timeout_minutes", 0.3)
    restarts = ("--max-restarts", rank)
    with training("--config", recipe, *LAYOUT, *options, *restarts) as process:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks_of(process)[rank].suspend()
        if rank:
            _wait_for_a_restart(tmp_path)
            process.send_signal(signal.SIGUSR1)
        run = finish(process)
    assert run.code == (ExitCode.REQUEUE if rank else ExitCode.FAULT), run.err
    first, other = (run.err.index(f"stacks of rank {one}") for one in (rank, 1 - rank))
    assert first < other
    assert f"rank {rank}, which the others waited for, in " in run.err
    assert all("in step\n" in stacks for stacks in (run.err[first:other], run.err[other:]))
    error = _one_error(run)
    assert f"error: rank {rank} has stood still since " in error
    assert re.search(rf"; rank {1 - rank} waited in [\w.]+ of [\w.]+;", error)


@pytest.mark.slow
def test_a_machine_that_is_killed_ends_the_others_with_one_line(
    recipe: Path, tmp_path: Path
) -> None:
    steps = ("--train.steps", MANY_STEPS, "--train.save_every", MANY_STEPS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        machines = ("--nodes", 2, "--rendezvous", f"localhost:{probe.getsockname()[1]}")
    command = ("--config", recipe, "--ranks", 1, "--parallel.pipeline", 2, *machines, *steps)
    output = ("--train.output", tmp_path, "--max-restarts", 1)
    with training(*command, *output) as one, training(*command, *output) as two:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=two)
        ranks_of(two)[0].kill()
        _wait_for_a_restart(tmp_path)
        ranks = ranks_of(two)
        two.kill()
        kill_all(ranks)
        run = finish(one)
    assert run.code == ExitCode.FAULT, run.err
    first, again, end = (line for line in run.err.splitlines() if line.startswith("error: "))
    for error in (first, again):
        assert "contact with a rank of another machine was lost" in error
    assert end == "error: not started again: 1 restarts are used up"
    assert "Traceback" not in run.err


def _wait_for_a_restart(output: Path) -> None:
    """Until it has made two steps; a busy machine may take minutes to find a hang and to load."""
    wait_until(lambda: restarts_before_each_start(output) == [0, 1], "the restart", 240)
    wait_until(lambda: steps_done(output) >= 2, "step 2 again")


def _one_error(run: Finished) -> str:
    (error,) = [line for line in run.err.splitlines() if line.startswith("error: ")]
    return error


def test_ranks_end_with_a_killed_launcher(recipe: Path, tmp_path: Path) -> None:
    steps = ("--train.steps", MANY_STEPS, "--train.save_every", MANY_STEPS)
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path, *steps)
    with training(*command) as process:
        wait_until(lambda: steps_done(tmp_path) >= 2, "step 2", of=process)
        ranks = ranks_of(process)
        assert len(ranks) == 2
        try:
            process.kill()
            wait_until(lambda: not any(rank.is_running() for rank in ranks), "the end of the ranks")
        finally:
            kill_all(ranks)
    assert Manifest.read(resolve_checkpoint(tmp_path)).step >= 2


def test_ranks_that_still_start_end_with_a_killed_launcher(recipe: Path, tmp_path: Path) -> None:
    command = ("--config", recipe, *LAYOUT, "--train.output", tmp_path)
    with launching.training(*command) as process:
        wait_until(lambda: len(ranks_of(process)) == 2, "two ranks")
        ranks = ranks_of(process)
        try:
            process.kill()
            wait_until(
                lambda: not any(rank.is_running() for rank in ranks), "the end of the ranks", 20
            )
        finally:
            kill_all(ranks)
    assert not whole_checkpoints(tmp_path)


def test_fewer_steps_than_are_done(recipe: Path, unbroken: tuple[Finished, Path]) -> None:
    steps = NUM_STEPS - 1
    output = ("--train.output", unbroken[1])
    run = train("--config", recipe, *LAYOUT, *output, "--train.steps", steps)
    _assert_one_error(run, f"train.steps is {steps}, but", f"has trained {NUM_STEPS} steps")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB of its own."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount_point)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@pytest.mark.parametrize("in_background", ["true", "false"])
def test_a_full_disk_costs_no_earlier_checkpoint(
    in_background: str, recipe: Path, unbroken: tuple[Finished, Path], small_disk: Path
) -> None:
    output = small_disk / "out"
    shutil.copytree(unbroken[1] / "step-00000020", output / "step-00000020")
    options = ("--train.steps", MANY_STEPS, "--train.save_every", 60, "--train.keep_last", 1)
    with training(
        *("--config", recipe, *LAYOUT, "--train.output", output),
        *(*options, "--train.async_save", in_background),
    ) as process:
        wait_until(lambda: steps_done(output) >= 21, "step 21", of=process)
        # What is left holds some more metrics, but not a checkpoint.
        size = shutil.disk_usage(small_disk).free - 256 * 1024
        (small_disk / "filler").write_bytes(b"\0" * size)
        run = finish(process)
    _assert_one_error(run, "no space left", str(output), "the run resumes from the newest one")
    assert steps_done(output) >= 60
    assert [path.name for path in whole_checkpoints(output)] == ["step-00000020"]
    assert _weights(output).keys() == _weights(unbroken[1]).keys()


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    with whole_model(directory) as (model, _):
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_an_output_that_is_another_directory_by_now(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--train.steps", MANY_STEPS, "--train.save_every", 20)
    with training("--config", recipe, *LAYOUT, "--train.output", output, *options) as process:
        wait_until(lambda: steps_done(output) >= 2, "step 2", of=process)
        output.rename(tmp_path / "elsewhere")
        output.mkdir()
        run = finish(process)
    _assert_one_error(run, f"train.output {output} was replaced by another directory")
    assert not list(output.iterdir())

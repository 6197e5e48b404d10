"""Whole runs of tools/train.py on a GPU: stopped, killed, moved, asked and exported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.launching import (
    NUM_STEPS,
    REPOSITORY,
    Finished,
    finish,
    python_path,
    ranks_of,
    steps_done,
    trace_of,
    train,
    training,
    wait_until,
)
from tests.support.without_gpu import hidden_gpus
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.errors import ExitCode

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

PRECISIONS = {"fp32": (), "bf16 packed": ("--train.precision", "bf16", "--data.packing", "true")}
MANY = ("--train.steps", 100_000)
"""Steps enough to be stopped in time, at a learning rate that does not depend on how many."""
CONSTANT = ("--optimizer.decay", "constant", "--optimizer.warmup_fraction", 0)


@pytest.fixture(params=PRECISIONS)
def command(request: pytest.FixtureRequest, recipe: Path) -> tuple[object, ...]:
    """A run on one rank, without its output."""
    return ("--config", recipe, "--ranks", 1, *CONSTANT, *PRECISIONS[request.param])


def _stop_late(command: tuple[object, ...], output: Path) -> Finished:
    """Train until a checkpoint and some steps are there, and ask the run to stop."""
    with training(*command, "--train.output", output, *MANY) as process:
        wait_until(lambda: steps_done(output) > 12, "step 12", of=process)
        process.send_signal(signal.SIGINT)
        return finish(process)


def test_a_stopped_run_goes_on_bit_for_bit(command: tuple[object, ...], tmp_path: Path) -> None:
    stopped = _stop_late(command, tmp_path / "stopped")
    assert stopped.code == ExitCode.INTERRUPTED, stopped.err
    at = steps_done(tmp_path / "stopped")
    total = ("--train.steps", at + 10)
    again = train(*command, "--train.output", tmp_path / "stopped", *total)
    assert again.code == ExitCode.OK, again.err
    whole = train(*command, "--train.output", tmp_path / "whole", *total)
    assert whole.code == ExitCode.OK, whole.err
    assert "device cuda" in whole.out
    assert trace_of(tmp_path / "stopped") == trace_of(tmp_path / "whole")


def test_a_killed_rank_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    command = ("--config", recipe, "--ranks", 1, *CONSTANT, "--train.output", tmp_path)
    with training(*command, *MANY) as process:
        wait_until(lambda: bool(whole_checkpoints(tmp_path)), "a checkpoint")
        ranks_of(process)[0].kill()
        killed = finish(process)
    assert killed.code == ExitCode.FAULT, killed.err
    steps = steps_done(tmp_path) + 10
    again = train(*command, "--train.steps", steps)
    assert again.code == ExitCode.OK, again.err
    assert [step[0] for step in trace_of(tmp_path)] == list(range(1, steps + 1))


def test_a_run_moves_from_a_gpu_to_a_cpu(recipe: Path, tmp_path: Path) -> None:
    command = ("--config", recipe, "--ranks", 1)
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    first = train(*command, "--train.output", whole)
    assert first.code == ExitCode.OK, first.err
    with hidden_gpus():
        second = train(*command, "--train.output", moved)
    assert second.code == ExitCode.OK, second.err
    assert "device cpu" in second.out
    on_gpu, on_cpu = ([step[1] for step in trace_of(output)] for output in (whole, moved))
    worst = max(abs(a / b - 1) for a, b in zip(on_gpu, on_cpu, strict=True))
    print(f"\n| loss of a whole fp32 run on GPU against CPU, {NUM_STEPS} steps | {worst:.1e} |")
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)

    total = ("--train.steps", NUM_STEPS + 5)
    with hidden_gpus():
        on = train(*command, "--train.output", whole, *total)
    assert on.code == ExitCode.OK, on.err
    back = train(*command, "--train.output", moved, *total)
    assert back.code == ExitCode.OK, back.err
    losses = [[step[1] for step in trace_of(output)[-5:]] for output in (whole, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def _tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_is_asked_and_exported(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    output = tmp_path / "run"
    run = train(
        *("--config", recipe, "--ranks", 1, "--train.output", output),
        *("--model.language.max_positions", 512, "--train.precision", "bf16"),
    )
    assert run.code == ExitCode.OK, run.err
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    question = dict(
        id="1", task="colour", images=["teal.png"], question="Which?", answer="teal", chance=0.1
    )
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    asked = _tool(
        *("tools/evaluate.py", "--checkpoint", output, "--images", tmp_path),
        *("--questions", tmp_path / "questions.jsonl", "--output", tmp_path / "answers.jsonl"),
    )
    assert asked.returncode == 0, asked.stderr
    exported = _tool(
        *("tools/convert_checkpoint.py", "export", "--checkpoint", output),
        *("--output", Path(tmp_path, "hf"), "--question", "Which?"),
        *("--image", tmp_path / "teal.png"),
    )
    assert exported.returncode == 0, exported.stderr
    assert "verified in a fresh process" in exported.stdout
    print(f"\n| export on a machine with a GPU | {exported.stdout.splitlines()[-2][:120]} |")

"""A recipe's ``--smoke`` in two halves: what its script would start, and ranks that do it.

Started as a person does, every rank is a process that imports torch and Megatron-Core anew; the
ranks of tests have done so.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.launching import REPOSITORY, python_path
from vila_mc.commands.train import arguments_parser
from vila_mc.config.load import load_run_from_args
from vila_mc.config.run import RunConfig
from vila_mc.parallel.groups import distributed
from vila_mc.topology.layout import Layout
from vila_mc.train.faults import StopRequest
from vila_mc.train.loop import TrainingLoop
from vila_mc.train.start import training_data

INTERPRETER = """#!/bin/bash
for word; do
    [[ $word != */tools/train.py ]] || { printf '%s\\n' "$@" >"$WORDS" && exit; }
done
exec "$REAL" "$@"
"""


def words_of_smoke(script: str, folder: Path, *options: str) -> list[str]:
    """What ``script --smoke`` gives to tools/train.py, and not to a process each for its data."""
    interpreter, words = folder / "python", folder / "words"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(0o755)
    own = {"VILA_MC_PYTHON": interpreter, "REAL": sys.executable, "WORDS": words}
    done = subprocess.run(
        ["bash", script, "--smoke", "--output", str(folder / "out"), *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": python_path(), **{k: str(v) for k, v in own.items()}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    door, *given = words.read_text().splitlines()
    assert door == str(REPOSITORY / "tools" / "train.py")
    return [*given, "--data.workers", "0"]


def config_of(words: Sequence[str]) -> tuple[int, RunConfig]:
    """Ranks on this machine, and the run."""
    parsed = arguments_parser().parse_args(words)
    return parsed.ranks, load_run_from_args(parsed)


def train(words: Sequence[str]) -> tuple[int, str]:
    """What a rank does; returns the step it has come to, and the layout."""
    _, config = config_of(words)
    layout = Layout.of(config.parallel, int(os.environ["WORLD_SIZE"]))
    at = layout.coordinates(int(os.environ["RANK"]))
    with (
        training_data(config, layout, at) as data,
        distributed(config.parallel, seed=config.train.seed, timeout_minutes=2) as ranks,
    ):
        loop = TrainingLoop(config, ranks, data, StopRequest())
        try:
            return loop.fit().step, str(layout)
        finally:
            loop.close()

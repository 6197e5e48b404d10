"""Start tools/train.py as a person does, watch it, and make sure that nothing of it stays."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import yaml

from vila_mc.observe.history import read_history
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.observe.record import StartRecord

REPOSITORY = Path(__file__).parents[2]
NUM_STEPS = 30
A_BUSY_MACHINE = 300.0
"""Seconds in which whatever happens at all has happened, also where all else runs beside it."""


class Launcher(Protocol):
    """What tests ask of a command that trains: a ``subprocess.Popen``, or alike."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """``returncode``, after looking whether it has ended."""

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, at its end. Raises subprocess.TimeoutExpired."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


def write_recipe(path: Path, tokenizer: Path, prefix: Path) -> Path:
    """A recipe that trains a tiny model on a dataset of ``write_dataset``."""
    model = {
        "vision": dict(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=64),
        "language": dict(
            layers=2, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=400, max_positions=64
        ),
    }
    data = {
        "blend": [{"path": str(prefix)}],
        "tokenizer": str(tokenizer),
        "sequence_length": 32,
        "workers": 1,
    }
    train = {
        "steps": NUM_STEPS,
        "global_batch": 4,
        "precision": "fp32",
        "trainable": ["vision", "connector", "language"],
        "save_every": 10,
        "timeout_minutes": 1,
    }
    recipe = {"model": model, "data": data, "train": train, "optimizer": {"lr": 1e-3}}
    path.write_text(yaml.safe_dump(recipe))
    return path


def python_path() -> str:
    """PYTHONPATH of a command: this checkout, and what else is needed here."""
    return os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))


@contextmanager
def training(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """tools/train.py with ``arguments``; it and its ranks are gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "tools/train.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with stopping(process):
        yield process


def command_environment() -> dict[str, str]:
    """What a command finds in its environment."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}


@contextmanager
def stopping(process: Launcher) -> Iterator[None]:
    """A launcher and its ranks are gone at the end."""
    try:
        yield
    finally:
        left = ranks_of(process)
        process.kill()
        kill_all(left)
        process.communicate()


def finish(process: Launcher, timeout: float = A_BUSY_MACHINE) -> Finished:
    """Wait for a command to end by itself."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return Finished(process.returncode, out, err)


def train(*arguments: object) -> Finished:
    """Run tools/train.py to its end."""
    with training(*arguments) as process:
        return finish(process)


def ranks_of(process: Launcher) -> list[psutil.Process]:
    """The processes that a launcher has started, by rank, which is how it starts them."""
    try:
        children = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []
    return sorted(children, key=lambda child: (child.create_time(), child.pid))


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """End processes that are still there."""
    for process in processes:
        if process.is_running():
            process.kill()


def steps_done(output: Path) -> int:
    """The last step in the metrics of a run."""
    records = read_metrics(output / METRICS_NAME)
    return int(records[-1]["step"]) if records else 0


def restarts_before_each_start(output: Path) -> list[int]:
    """For every start of a run, how often its launcher had started it again before."""
    return [event.restart for event in read_history(output) if isinstance(event, StartRecord)]


def trace_of(output: Path) -> list[tuple[float, ...]]:
    """What every step of a run computed, without its timing."""
    names = ("step", "loss", "grad_norm", "learning_rate", "trained_tokens", "images")
    records = read_metrics(output / METRICS_NAME)
    return [tuple(record[name] for name in names) for record in records if "loss" in record]


def wait_until(
    condition: Callable[[], bool],
    what: str,
    timeout: float = A_BUSY_MACHINE,
    *,
    of: Launcher | None = None,
) -> None:
    """Look every few milliseconds until something is so.

    Raises:
        AssertionError: it was not in time, or ``of``, the command that would do it, has ended.
    """
    ends = time.monotonic() + timeout
    while not condition():
        if of is not None and of.poll() is not None and not condition():
            out, err = of.communicate()
            raise AssertionError(f"{what} has not happened, and {of.returncode}: {out}{err}")
        assert time.monotonic() < ends, f"after {timeout:.0f} s, {what} has not happened"
        time.sleep(0.005)

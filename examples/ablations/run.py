"""Repeats a table of the paper on a small world, and says what of its claims comes out.

    bash examples/ablations/run.sh TABLE [--output DIR] [--seeds N] [--gpus N]

Without TABLE it lists the tables there are.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import resources
from declared import RESOURCES, read_phases, read_table, table_names
from models import Plan, Scale, World
from page import lines, result_of, write_result
from pydantic import PositiveInt
from steps import CHECKOUT, Runner, StepFailedError

from vila_mc import __version__
from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, run_cli, say


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Repeat a table of the paper on a small world; without a table: say which there are."""

    table: Annotated[str | None, Argument("TABLE", is_positional=True)] = None
    """Which one; see the list without it."""
    output: Path = Path("ablations-out")
    """Folder of the world, of all that is trained, and of ablations.html; tables share it."""
    seeds: PositiveInt = 3
    """Models of each arm."""
    at_once: PositiveInt | None = None
    """Runs at a time (default: one for each core; one with --gpus)."""
    gpus: PositiveInt | None = None
    """Train larger models, each on this many GPUs."""


def main() -> int:
    """Parse and do it. Raises VilaError."""
    return run_job(Job(AblationOptions, repeat), None, None)


def repeat(options: AblationOptions) -> int:
    """Do the table that the options name. Raises VilaError."""
    if options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"{options.output} is a file. Name a folder.", option="output")
    if options.table is None:
        for name in table_names():
            table = read_table(name)
            say(f"{name:15}{len(table.arms)} arms  {table.title}")
        say(f"{RESOURCES:15}        {resources.TITLE}")
        return 0
    if options.table == RESOURCES:
        return show(options.output, resources.resources(_versions()))
    table, phases = read_table(options.table), read_phases()
    world = World.open(_world(options.output, is_small=options.gpus is None))
    scale = Scale() if options.gpus is None else Scale(options.gpus, ("model_gpu",))
    plan = Plan(table, phases, world, options.seeds, scale)
    cores = len(os.sched_getaffinity(0))
    at_once = options.at_once or (1 if options.gpus else cores)
    threads = max(1, cores // at_once)
    Runner(options.output, at_once=at_once, threads=threads, say=say).run(plan.steps())
    size = f"{options.gpus} GPUs" if options.gpus else "two CPU cores"
    facts = {"seeds": str(options.seeds), "size": size, **_versions()}
    figures = plan.figures(options.output)
    runs = plan.runs(options.output)
    return show(
        options.output, result_of(options.table, table, figures, plan.chances(), facts, runs)
    )


def show(output: Path, result: Mapping[str, Any]) -> int:
    """Print a table's result and put it on the page; returns the exit code."""
    for line in lines(result):
        say(line)
    say(str(write_result(output, result)))
    return 0


def _versions() -> dict[str, str]:
    packages = ("torch", "megatron-core")
    return {"vila_mc": __version__} | {name: version(name) for name in packages}


def _world(output: Path, *, is_small: bool) -> Path:
    """The small world, built if it is not there. Raises StepFailedError."""
    folder = output / ("world" if is_small else "world-large")
    output.mkdir(parents=True, exist_ok=True)
    build = CHECKOUT / "examples" / "atlas" / "build.sh"
    command = ["bash", str(build), str(folder), *(["--small"] if is_small else [])]
    if code := subprocess.run(command, check=False).returncode:
        raise StepFailedError(f"{build} ended with exit code {code}.")
    return folder


if __name__ == "__main__":
    run_cli(main)

"""Ranks that were started for different runs all say what differs, and none goes on."""

import contextlib
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import write_recipe
from tests.support.ranks import run_ranks
from tests.support.tiny_data import write_dataset
from vila_mc.config.load import load_run
from vila_mc.errors import ExitCode
from vila_mc.train import identity as identity_module
from vila_mc.train.rank import train_rank


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder / "recipe.yaml", *write_dataset(folder))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of other samples, made with the same tokenizer."""
    return write_dataset(tmp_path_factory.mktemp("others"), num_samples=23)[1]


def _train(
    recipe: Path,
    options_by_rank: Sequence[dict[str, Any]],
    code: dict[int, str],
    directories: Sequence[Path] = (),
) -> tuple[int, list[str]]:
    """The exit code of this rank and what it prints as errors."""
    rank = int(os.environ["RANK"])
    os.chdir(directories[rank] if directories else ".")
    config = load_run([recipe], options_by_rank[rank])
    if rank in code:
        identity_module._code_sha256 = lambda: code[rank]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        exit_code = train_rank(config)
    return exit_code, [line for line in errors.getvalue().splitlines() if "error: " in line]


DIFFERENT: dict[str, tuple[Any, ...]] = {
    "rate": ({"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-1}, "optimizer.lr is 0.001 on {0}"),
    "parts": ({}, {"train.trainable": ["connector"]}, "train.trainable is "),
    "layout": ({"parallel.tensor": 2}, {"parallel.pipeline": 2}, "parallel.tensor is 2 on {0}"),
    "steps": ({"train.steps": 2}, {"train.steps": 3}, "train.steps is 2 on {0}, 3 on {1}"),
    "output": ({}, {"train.output": "elsewhere"}, "train.output is "),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERENT)
def test_one_line_names_the_option_and_the_machine(case: str, recipe: Path, tmp_path: Path) -> None:
    *options, expected = DIFFERENT[case]
    options = [{"train.output": str(tmp_path / "out")} | each for each in options]
    where = [f"{socket.gethostname()} (rank {rank})" for rank in range(2)]
    results = run_ranks(2, _train, recipe, options, {}, timeout=100)
    assert results[0] == results[1]
    code, (line,) = results[0]
    assert code == ExitCode.USER_ERROR
    assert expected.format(*where) in line
    assert line.count(" is ") == 1 or case == "layout"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_data_or_code_is_named(recipe: Path, others: Path, tmp_path: Path) -> None:
    blend = {"data.blend": [{"path": str(others)}]}
    output = {"train.output": str(tmp_path / "out")}
    results = run_ranks(2, _train, recipe, [output, output | blend], {1: "f" * 64}, timeout=100)
    assert results[0] == results[1]
    code, (line,) = results[0]
    assert code == ExitCode.USER_ERROR
    assert "the dataset of data.blend.0 is 24 samples with SHA-256" in line
    assert "23 samples with SHA-256" in line
    assert "vila_mc itself is " in line


@pytest.mark.slow
def test_paths_and_workers_of_one_machine_are_its_own(recipe: Path, tmp_path: Path) -> None:
    config = load_run([recipe])
    (entry,) = config.data.blend
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(entry.path.parent)
    output = {"train.output": str(tmp_path / "out"), "train.steps": 1, "data.workers": 0}
    moved = {"data.blend": [{"path": str(elsewhere / entry.path.name)}], "data.workers": 1}
    results = run_ranks(2, _train, recipe, [output, output | moved], {}, timeout=100)
    assert results == [(0, []), (0, [])]


@pytest.mark.slow
def test_an_output_that_machines_do_not_share(recipe: Path, tmp_path: Path) -> None:
    directories = [tmp_path / name for name in ("first", "second")]
    for directory in directories:
        (directory / "out").mkdir(parents=True)
    options = [{"train.output": "out"}] * 2
    results = run_ranks(2, _train, recipe, options, {}, directories, timeout=100)
    assert results[0] == results[1]
    code, (line,) = results[0]
    assert code == ExitCode.USER_ERROR
    assert f"another directory on {socket.gethostname()} (rank 1) than on that of rank 0" in line
    assert not any(path.name.startswith(".shared") for path in tmp_path.rglob("*"))

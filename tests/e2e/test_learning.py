"""A run says what will not learn, and why, before it spends its steps on it."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from tests.support.forked import train
from tests.support.launching import write_recipe
from tests.support.ranks import run_ranks
from tests.support.tiny_data import write_dataset
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.trained_template import template_of
from vila_mc.config.load import load_run
from vila_mc.errors import ExitCode
from vila_mc.train import journal
from vila_mc.train.rank import train_rank


@pytest.fixture(scope="module")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return write_recipe(folder / "recipe.yaml", *write_dataset(folder, with_images=False))


def _said(recipe: Path, output: Path, **options: object) -> list[str]:
    """What rank 0 of 1 prints."""
    journal._STEPS_WITHOUT_IMAGES = 2
    train_options = {f"train.{name}": value for name, value in options.items()}
    config = load_run([recipe], {"train.output": str(output)} | train_options)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train_rank(config) == 0
    return printed.getvalue().splitlines()


@pytest.mark.slow
def test_parts_that_see_no_image(text_only: Path, tmp_path: Path) -> None:
    (lines,) = run_ranks(1, _said, text_only, tmp_path, steps=5)
    at_start = [line for line in lines if "no dataset of data.blend holds an image" in line]
    assert [line.split(" so ")[1].split()[0] for line in at_start] == ["vision", "connector"]
    later = [line for line in lines if "had no gradient" in line]
    assert later == [
        f"warning: vision, connector had no gradient in the last {steps} steps, which had no images"
        for steps in (2, 4)
    ]


@pytest.mark.slow
def test_nothing_to_learn_is_refused(text_only: Path, tmp_path: Path) -> None:
    run = train(
        *("--config", text_only, "--ranks", 1, "--train.output", tmp_path / "out"),
        *("--train.trainable", "[connector]"),
    )
    assert run.code == ExitCode.USER_ERROR, run.err
    (line,) = run.err.splitlines()
    assert "no dataset of data.blend holds an image, so train.trainable [connector]" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rates_that_are_zero_or_jump(recipe: Path, tmp_path: Path) -> None:
    (lines,) = run_ranks(1, _said, recipe, tmp_path, steps=1)
    assert any("the one step left is the last of train.steps" in line for line in lines)
    (lines,) = run_ranks(1, _said, recipe, tmp_path, steps=10)
    jumps = [line for line in lines if "the learning rate jumps from 0.00e+00 in step 1 to" in line]
    assert len(jumps) == 1, lines
    (lines,) = run_ranks(1, _said, recipe, tmp_path, steps=10)
    assert not any("jumps" in line or "one step left" in line for line in lines)


def _with_template(folder: Path, name: str | None) -> Path:
    """A recipe on a dataset that was made with a chat template."""
    folder.mkdir()
    tokenizer, prefix = write_dataset(folder, 8)
    file = Path(f"{prefix}.manifest.json")
    source = {} if name is None else {"template": name}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": source}))
    return write_recipe(folder / "recipe.yaml", tokenizer, prefix)


def _templates(folder: Path) -> dict[str, tuple[list[str], object]]:
    """What is said of templates at the start of each run, and what its checkpoint records."""
    names = {"chatml": "chatml", "none": None, "llama": "llama_2", "plain": "plain"}
    recipes = {name: _with_template(folder / name, text) for name, text in names.items()}
    mixed = json.dumps([{"path": str(folder / name / "pairs")} for name in ("chatml", "llama")])
    found: dict[str, tuple[list[str], object]] = {}
    for run, recipe, options in (
        ("chatml", "chatml", {}),
        ("none after chatml", "none", {"train.load": folder / "run chatml"}),
        ("none after chatml", "none", {"train.steps": "2"}),
        ("plain after chatml", "plain", {"train.load": folder / "run chatml"}),
        ("llama after both", "llama", {"train.load": folder / "run none after chatml"}),
        ("mixed", "chatml", {"data.blend": mixed}),
    ):
        output = folder / f"run {run}"
        values = {"train.steps": "1", "train.output": output} | options
        config = load_run([recipes[recipe]], {key: str(value) for key, value in values.items()})
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert train_rank(config) == 0
        said = [line for line in printed.getvalue().splitlines() if "chat template" in line]
        found[run] = said, template_of(Manifest.read(resolve_checkpoint(output)))
    return found


@pytest.mark.slow
def test_the_chat_template_of_the_weights_stays_known(tmp_path: Path) -> None:
    (found,) = run_ranks(1, _templates, tmp_path)
    assert found["chatml"] == ([], "chatml")
    assert found["none after chatml"] == ([], "chatml")
    assert found["plain after chatml"] == ([], "plain")
    (line,), recorded = found["llama after both"]
    assert "learned the chat template chatml, and the datasets were made with llama_2" in line
    assert recorded == "llama_2"
    (line,), recorded = found["mixed"]
    assert "made with several chat templates: chatml (8 samples), llama_2 (8 samples)" in line
    assert recorded in ("chatml", "llama_2")

"""A person tries FP8 on a CPU by one option."""

from pathlib import Path

import pytest

from tests.support import forked
from tests.support.launching import train, write_recipe
from tests.support.tiny_data import write_dataset
from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.emulation.install import WHEEL_FOLDER
from vila_mc.observe.metrics import METRICS_NAME, read_metrics

FP8 = ("--train.precision", "bf16", "--train.fp8.recipe", "delayed")
EMULATED = ("--train.fp8.emulation", "true")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model."""
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder / "recipe.yaml", *write_dataset(folder))


def test_fp8_is_tried_on_a_cpu(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    steps = ("--train.steps", 2, "--train.save_every", 1, "--train.async_save", "false")
    command = ("--config", recipe, "--train.output", output, *FP8, *EMULATED, "--ranks", 1)
    finished = train(*command, *steps)
    assert finished.code == 0, finished.err
    said = (
        "layers transformer_engine, optimizer FusedAdam of Transformer Engine; Transformer Engine"
    )
    assert f"{said} 2." in finished.out
    assert "; fused SwiGLU, cross entropy; device cpu" in finished.out
    first = newest_checkpoint(output)
    assert first is not None
    manifest = Manifest.read(first)
    assert manifest.layers == {"vision": "transformer_engine", "language": "transformer_engine"}
    assert manifest.versions["transformer-engine"].startswith("2.")
    losses = [step["loss"] for step in read_metrics(output / METRICS_NAME)]
    assert len(losses) == 2
    assert all(losses)

    # What came of it is a checkpoint like any other.
    plain = ("--config", recipe, "--train.output", output, "--ranks", 1, "--train.steps", 3)
    resumed = forked.train(*plain, "--train.precision", "bf16")
    assert resumed.code == 0, resumed.err
    assert "layers torch, optimizer AdamW of vila_mc; Transformer Engine absent" in resumed.out
    assert "from here on: train.fp8.recipe delayed -> none\n" in resumed.out
    assert resumed.out.count("from here on: train.") == 2  # the other is train.steps
    newest = newest_checkpoint(output)
    assert newest is not None
    manifest = Manifest.read(newest)
    assert manifest.step == 3
    assert manifest.layers == {"vision": "torch", "language": "torch"}
    assert "transformer-engine" not in manifest.versions


def test_fp8_without_transformer_engine_is_refused(recipe: Path, tmp_path: Path) -> None:
    finished = forked.train("--config", recipe, "--train.output", tmp_path, *FP8, "--ranks", 1)
    assert finished.code == 2
    assert "train.fp8.recipe is delayed, which needs Transformer Engine, and it is" in finished.err
    assert "try the recipe on a CPU with train.fp8.emulation" in finished.err
    assert "Traceback" not in finished.err


def test_emulation_without_its_wheel_is_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WHEEL_FOLDER, str(tmp_path))
    options = ("--config", recipe, "--train.output", tmp_path / "out", "--ranks", 1)
    finished = train(*options, *FP8, *EMULATED)
    assert finished.code == 2
    assert "does not hold the wheel of Transformer Engine that emulation executes" in finished.err
    assert "Traceback" not in finished.err

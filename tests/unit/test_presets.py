"""Recipes that come with the package, and what the help says of defaults that are 7B-sized."""

import argparse
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest

from vila_mc.config.load import add_config_options, load_run, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser, leaf_options
from vila_mc.config.recipe import PRESETS
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.errors import ConfigError
from vila_mc.topology.stage_plan import plan_stages

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
SIZED_7B = (
    *(f"model.vision.{name}" for name in ("image_size", "patch_size", "width", "layers")),
    *(f"model.vision.{name}" for name in ("heads", "ffn")),
    *(f"model.language.{name}" for name in ("layers", "width", "ffn", "heads", "kv_heads")),
    *(f"model.language.{name}" for name in ("vocab_size", "max_positions")),
    *("data.sequence_length", "optimizer.lr", "train.global_batch"),
)


def read(*arguments: str) -> RunConfig:
    parser = ErrorRaisingParser()
    add_config_options(parser)
    return load_run_from_args(parser.parse_args(arguments))


def test_the_names_are_those_of_the_files_and_a_wheel_has_them() -> None:
    folder = files("vila_mc.config") / "presets"
    assert {file.name for file in folder.iterdir()} == {f"{name}.yaml" for name in PRESETS}
    taken = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["package-data"]["vila_mc"]
    for name in PRESETS:
        assert any(fnmatch(f"config/presets/{name}.yaml", pattern) for pattern in taken)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 1), (4, 2, 2)])
def test_a_preset_trains_all_parts_at_small_layouts(
    name: str, layout: tuple[int, int, int]
) -> None:
    ranks, tensor, pipeline = layout
    degrees = {"parallel.tensor": str(tensor), "parallel.pipeline": str(pipeline)}
    config = load_run([Path(f"preset:{name}")], degrees)
    config.check_world(ranks)
    assert plan_stages(config.model, config.parallel)
    assert set(config.train.trainable) == set(MODEL_PARTS)  # nothing is pre-trained


def test_presets_grow() -> None:
    sizes = [load_run([Path(f"preset:{name}")]).model for name in PRESETS]
    assert sizes == sorted(sizes, key=lambda model: (model.language.width, model.vision.width))


def test_a_preset_is_combined_as_any_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {language: {layers: 3}}\noptimizer: {lr: 1e-2}\n")
    ours = ("--config", "preset:tiny", "--config", str(tmp_path / "mine.yaml"))
    config = read(*ours, "--optimizer.lr", "1e-4")
    assert config.model.vision == read("--config", "preset:tiny").model.vision
    assert config.model.language.layers == 3
    assert config.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("preset:nonsense", "there is no preset nonsense. Give one of preset:tiny, preset:small,"),
        ("preset:", "there is no preset without a name. Give one of preset:tiny"),
        ("preset:../presets/tiny", "there is no preset ../presets/tiny. Give one of"),
        ("tiny", "there is no recipe tiny. Did you mean preset:tiny?"),
    ],
)
def test_a_preset_that_does_not_exist_names_what_does(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("--config", given)
    assert message in str(caught.value)


def test_help_names_the_presets_and_defaults_of_7b() -> None:
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    shown = " ".join(parser.format_help().split())
    assert all(f"preset:{name}" in shown for name in PRESETS)
    docs = {
        name: doc
        for section in ("model", "data", "optimizer", "train")
        for name, _, doc in leaf_options(getattr(RunConfig(), section), section)
    }
    silent = [
        name
        for name in SIZED_7B
        if not any(word in docs[name] for word in ("7B", "Llama", "CLIP ViT-L"))
    ]
    assert not silent

"""Recipes that come with the package, and what the help says of defaults that are 7B-sized."""

import argparse
import dataclasses
import math
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest

from vila_mc.commands import train
from vila_mc.config.load import add_config_options, load_model, load_run, load_run_from_args
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig
from vila_mc.config.options import ErrorRaisingParser, leaf_options
from vila_mc.config.published import published_parts
from vila_mc.config.recipe import PRESETS, WHOLE_MODELS, preset_names
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.errors import ConfigError
from vila_mc.topology.shapes import model_parameters
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
    names = {*PRESETS, *WHOLE_MODELS, "vision", "language"}
    assert {file.name for file in folder.iterdir()} == {f"{name}.yaml" for name in names}
    taken = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["package-data"]["vila_mc"]
    for name in names:
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
        ("qwen3-8b", "there is no recipe qwen3-8b. Did you mean preset:qwen3-8b?"),
        ("preset:qwen3-9b", "there is no preset qwen3-9b. Did you mean preset:qwen3-8b?"),
        ("preset:vision", "there is no preset vision. Give one of preset:tiny"),
    ],
)
def test_a_preset_that_does_not_exist_names_what_does(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("--config", given)
    assert message in str(caught.value)


PUBLISHED = published_parts()
EXPLICIT = {  # what tells every model from the next, so that no entry leaves it to a default
    "vision": {"family", "image_size", "patch_size", "width", "layers", "heads", "ffn"}
    | {"image_mode"},
    "language": {"family", "layers", "width", "ffn", "heads", "kv_heads", "head_width"}
    | {"vocab_size", "max_positions", "norm_epsilon", "tied_embeddings", "rope_theta"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_part_has_as_many_weights_as_its_publishers_say(name: str) -> None:
    part = PUBLISHED[name]
    assert set(part.shape) >= EXPLICIT[part.part]
    model = load_model([Path(f"preset:{name}")])
    if part.part == "language":
        assert model.language.padded_vocab() == model.language.vocab_size
        beside = 0
    else:  # training leaves out the last layer and the norm behind it
        vision = dataclasses.replace(model.vision, layers=model.vision.layers + 1)
        model = dataclasses.replace(model, vision=vision)
        beside = 2 * vision.width
    weights = (w for w in model_parameters(model) if w.name.startswith(f"{part.part}."))
    assert sum(math.prod(weight.shape) for weight in weights) + beside == part.weights


def test_a_part_leaves_nothing_of_the_one_before() -> None:
    stretched, normed = Path("preset:llama-3.2-1b"), Path("preset:qwen3-0.6b")
    assert load_model([stretched]).language.rope.scaling == "llama3"
    assert load_model([stretched, normed]) == load_model([normed])
    assert load_model([normed, stretched]) == load_model([stretched])
    tower = Path("preset:siglip-so400m-384")
    both = load_model([tower, normed])
    assert (both.vision, both.language) == (
        load_model([tower]).vision,
        load_model([normed]).language,
    )


def test_a_whole_model_is_made_of_parts() -> None:
    assert load_model([Path("preset:vila-7b")]) == ModelConfig()
    larger = load_model([Path("preset:vila-13b")])
    assert larger.vision == VisionConfig()
    assert larger.language == load_model([Path("preset:llama-2-13b")]).language
    assert larger.language != LanguageConfig()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("language: preset:qwen3-9b", "model.language: there is no preset qwen3-9b. Did you mean"),
        ("language: preset:clip-vit-l-14", "model.language: there is no preset clip-vit-l-14."),
        ("vision: preset:qwen3-8b", "model.vision: there is no preset qwen3-8b. Give one of"),
        ("vision: clip-vit-l-14", "model.vision"),
    ],
)
def test_a_recipe_names_parts_of_their_kind(tmp_path: Path, model: str, message: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model:\n  {model}\n")
    with pytest.raises(ConfigError) as caught:
        load_model([recipe])
    assert message in str(caught.value)
    recipe.write_text("model:\n  language: preset:qwen3-8b\n")
    assert load_model([recipe]) == load_model([Path("preset:qwen3-8b")])


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"preset:{name}" for name in preset_names()]
    assert all(" weights " in line for line in lines)


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

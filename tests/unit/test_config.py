"""The way from YAML and overrides to a RunConfig and back; names that are none."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from vila_mc.config.load import (
    add_config_options,
    load_model,
    load_run,
    load_run_from_args,
    run_from_dict,
    run_to_dict,
)
from vila_mc.config.options import ErrorRaisingParser, leaf_options
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError


def test_the_defaults_are_allowed() -> None:
    assert load_run([]) == RunConfig()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data.blendd", "data.blend"),
        ("train.step", "train.steps"),
        ("parallel.tensr", "parallel.tensor"),
        ("train.eval_steps", "train.validate_every"),
        ("data.val_data", "data.validation"),
        ("model.lora.rank", "lora.rank"),
        ("lora_enable", "lora.rank"),
        ("lora_target_modules", "lora.targets"),
        ("train.wandb_project", "train.wandb"),
        ("report_to", "train.tensorboard"),
    ],
)
def test_a_typo_names_the_nearest_option(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not an option\. Did you mean {meant}\?"):
        load_run([], {given: "1"})
    with pytest.raises(ConfigError, match=rf"^--{given} is .* option\. Did you mean --{meant}\?"):
        _parser().parse_args([f"--{given}", "1"])


@pytest.mark.parametrize("given", ["zzz", "model.tower", "train.gradient_clipper", "data.shuffle"])
def test_something_far_from_every_option_points_to_help(given: str) -> None:
    with pytest.raises(ConfigError, match=rf"{given} is not an option\. Run with --help"):
        load_run([], {given: "1"})


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("train.qlora", "QLoRA"),
        ("train.deepspeed", "DeepSpeed or FSDP"),
        ("model.dropout", "dropout"),
    ],
)
def test_what_is_not_there_at_all_is_said(given: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf" is not an option: there is no {what}\. Run with"):
        load_run([], {given: "1"})
    with pytest.raises(ConfigError, match=rf"{given} is not an option: there is no {what}\."):
        _parser().parse_args([f"--{given}", "1"])


def test_a_recipe_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("train: {steps: 3")
    with pytest.raises(ConfigError, match=r"r\.yaml is not valid YAML: .* at line 1, column 8"):
        load_run([tmp_path / "r.yaml"])


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {steps: 1, seed: 1, save_every: 1}\noptimizer: {lr: 1e-3}\n")
    second.write_text("train:\n  seed: 2\n  save_every: 2\n")
    arguments = ["--config", str(first), "--config", str(second), "--train.save_every", "3"]
    config = load_run_from_args(_parser().parse_args(arguments))
    assert (config.train.steps, config.train.seed, config.train.save_every) == (1, 2, 3)
    assert config.optimizer.lr == 1e-3


def test_of_steps_and_epochs_the_later_counts(tmp_path: Path) -> None:
    recipe, other = tmp_path / "recipe.yaml", tmp_path / "other.yaml"
    recipe.write_text("train: {steps: 500}")
    other.write_text("train: {epochs: 2}")
    train = load_run([recipe], {"train.epochs": "3"}).train
    assert (train.steps, train.epochs) == (RunConfig().train.steps, 3)
    train = load_run([recipe, other], {"train.steps": "7"}).train
    assert (train.steps, train.epochs) == (7, None)
    assert load_run([recipe], {"train.seed": "1"}).train.steps == 500
    with pytest.raises(ConfigError, match=r"train\.steps is 7 and train\.epochs 3\.0\. Give"):
        load_run([recipe], {"train.steps": "7", "train.epochs": "3"})


def test_a_model_can_be_read_without_the_rest_of_a_run(tmp_path: Path) -> None:
    recipe, other = tmp_path / "recipe.yaml", tmp_path / "other.yaml"
    recipe.write_text("model: {language: {max_positions: 256}, vision: {image_size: 56}}")
    other.write_text("train: {steps: 1}\nmodel: {vision: {patch_size: 28}}")
    with pytest.raises(ConfigError, match=r"is greater than model\.language\.max_positions"):
        load_run([recipe])
    assert load_model([recipe, other]).visual_tokens() == 1
    assert load_model([]) == RunConfig().model
    other.write_text("model: {vision: {patch_sise: 28}}")
    with pytest.raises(ConfigError, match=r"Did you mean model\.vision\.patch_size\?"):
        load_model([other])


def test_overrides_are_words_and_lists_are_yaml() -> None:
    config = load_run(
        [],
        {
            "train.trainable": "[connector]",
            "train.load": "null",
            "train.resume": "false",
            "data.blend": "[{path: a, weight: 2}, {path: b}]",
        },
    )
    assert config.train.trainable == ("connector",)
    assert config.train.load is None
    assert config.train.resume is False
    assert [(str(entry.path), entry.weight) for entry in config.data.blend] == [
        ("a", 2.0),
        ("b", None),
    ]


def test_an_empty_recipe_changes_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "empty.yaml"
    recipe.write_text("# nothing yet\n")
    assert load_run([recipe]) == RunConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {steps: 1", "is not valid YAML"),
        (b"- a\n- b\n", "holds a list; a recipe is a YAML mapping"),
        (b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_a_bad_recipe_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_run([recipe])
    assert message in str(caught.value)
    assert str(recipe) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe .*absent\.yaml"):
        load_run([tmp_path / "absent.yaml"])
    with pytest.raises(ConfigError, match="is a folder, pipe or device"):
        load_run([tmp_path])


def test_help_lists_every_leaf_with_its_text_and_default() -> None:
    shown = " ".join(_parser().format_help().split())
    options = list(leaf_options(RunConfig(), "run"))
    assert len(options) > 40
    for dotted, _, text in options:
        assert f"--{dotted.removeprefix('run.')} " in shown
        assert len(text) > 5
        assert " ".join(text.split()) in shown


def test_a_missing_argument_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--train\.steps: expected one argument\. Run with"):
        _parser().parse_args(["--train.steps"])


def test_run_to_dict_survives_yaml_and_json() -> None:
    config = load_run(
        [],
        {
            "model.connector.kind": "linear",
            "data.blend": [{"path": "/data/a", "weight": 0.1}],
            "data.tokenizer": "/data/tokenizer.model",
            "parallel.tensor": 2,
            "parallel.sequence": True,
            "optimizer.lr": 3e-7,
            "train.trainable": ["connector"],
            "train.load": "/checkpoints/align",
        },
    )
    plain = run_to_dict(config)
    assert run_from_dict(plain) == config
    assert run_from_dict(yaml.safe_load(yaml.safe_dump(plain))) == config
    assert run_from_dict(json.loads(json.dumps(plain))) == config


def _parser() -> argparse.ArgumentParser:
    parser = ErrorRaisingParser()
    add_config_options(parser)
    return parser

"""Every refusal of the config, and the way from YAML and overrides to a RunConfig and back."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.load import (
    add_config_options,
    connector_from_text,
    load_model,
    load_run,
    load_run_from_args,
    run_from_dict,
    run_to_dict,
)
from vila_mc.config.options import ErrorRaisingParser, leaf_options
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError

POSITIVE = [
    *(f"model.vision.{name}" for name in ("image_size", "patch_size", "width", "heads", "ffn")),
    *(f"model.language.{name}" for name in ("layers", "width", "ffn", "heads", "kv_heads")),
    *(f"model.language.{name}" for name in ("vocab_size", "max_positions", "rope_theta")),
    *(f"parallel.{name}" for name in ("tensor", "pipeline", "virtual", "context")),
    *(f"optimizer.{name}" for name in ("lr", "epsilon")),
    *(f"train.{name}" for name in ("steps", "global_batch", "micro_batch", "save_every")),
    *(f"train.{name}" for name in ("keep_last", "timeout_minutes", "fp8.amax_history")),
]

TILES = {"model.vision.image_mode": "tiles"}
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"train.epochs": 0}, "train.epochs is 0.0; it must be greater than 0"),
    (
        {"train.epochs": 2, "data.blend": [{"path": "a"}, {"path": "b"}]},
        "a blend by weights has no end. Give each of its entries epochs",
    ),
    ({"model.vision.layers": 1}, "model.vision.layers is 1; features come from layer -2"),
    (
        {"model.vision.select_layer": -4, "model.vision.layers": 3},
        "model.vision.layers is 3; features come from layer -4 (model.vision.select_layer), so at "
        "least 4 are needed",
    ),
    ({"model.vision.select_layer": 0}, "model.vision.select_layer is 0; it counts from the end"),
    ({"model.vision.select_layer": 22}, "select_layer is 22; it counts from the end"),
    ({"model.vision.image_size": 337}, "is not a multiple of model.vision.patch_size 14"),
    (
        {"model.vision.max_tiles": 4},
        "model.vision.max_tiles is set, but model.vision.image_mode is crop. Set the mode to tiles",
    ),
    ({"model.vision.thumbnail": False}, "model.vision.thumbnail is set, but"),
    ({"model.vision.tile_newline": 13}, "model.vision.tile_newline is set, but"),
    (TILES | {"model.vision.max_tiles": 0}, "model.vision.max_tiles is 0; it must be 1 to 100"),
    (TILES | {"model.vision.tile_newline": 32000}, "a token of the language model, 0 to 31999"),
    (
        TILES | {"data.sequence_length": 1872},
        "one image takes up to 13 x 144 = 1872 positions, but data.sequence_length is 1872. Raise "
        "it, or lower model.vision.max_tiles",
    ),
    ({"data.sequence_length": 144}, "one image takes 144 positions, but data.sequence_length"),
    ({"model.vision.heads": 3}, "model.vision.width 1024 is not a multiple of model.vision.heads"),
    ({"model.language.heads": 3}, "width 4096 is not a multiple of model.language.heads 3"),
    ({"model.language.head_width": 5}, "model.language.head_width is 5; rotary"),
    ({"model.language.head_width": 0}, "must be even and greater than 0"),
    ({"model.language.family": "lama"}, "it must be one of llama, mistral, qwen2, qwen3"),
    ({"model.vision.family": "dino"}, "it must be one of clip, siglip"),
    ({"model.language.kv_heads": 3}, "heads 32 is not a multiple of model.language.kv_heads 3"),
    ({"data.sequence_length": 1}, "data.sequence_length is 1; it must be at least 2"),
    ({"data.workers": -1}, "data.workers is -1; it must be 0 or more"),
    ({"data.blend": [{"path": "a", "weight": 0}]}, "it must be greater than 0"),
    ({"data.blend": [{"path": "a", "epochs": float("inf")}]}, "it must be a finite number"),
    ({"data.blend": [{"path": "a", "weight": 1, "epochs": 1}]}, "both a weight and epochs"),
    ({"data.blend": [{"path": "a", "epochs": 1}, {"path": "b"}]}, "epochs for 1 of its 2 datasets"),
    ({"data.validation": [{"path": "a", "weight": 2}]}, "data.validation reads a once"),
    ({"data.validation": [{"path": "a", "epochs": 2}]}, "epochs of at most 1 to read a part"),
    ({"train.validate_every": -1}, "train.validate_every is -1; it must be 0, which is never"),
    ({"train.validate_every": 7}, "train.validate_every is 7, but data.validation is empty"),
    ({"data.blend": [{"weight": 1}]}, "data.blend.0.path is missing"),
    ({"data.blend": "a"}, "data.blend is a; give a list, such as"),
    ({"data.blend": [{"path": "a", "wieght": 1}]}, "Did you mean data.blend.0.weight?"),
    ({"optimizer.lr": "fast"}, "optimizer.lr is fast; give a number"),
    ({"train.steps": 1.5}, "train.steps is 1.5; "),
    ({"parallel.context": 2}, "context parallelism does not work yet"),
    ({"parallel.sequence": True}, "parallel.tensor is 1"),
    ({"parallel.virtual": 2}, "Virtual stages need at least 2 pipeline stages"),
    ({"parallel.vision_placement": "dedicated"}, "needs at least 2 pipeline stages"),
    ({"parallel.schedule": "zero-bubble"}, "parallel.schedule is zero-bubble"),
    ({"optimizer.min_lr": 1.0}, "optimizer.min_lr is 1.0; it must lie between 0 and"),
    (
        {"optimizer.min_lr": 1e-6, "optimizer.decay": "constant"},
        "optimizer.min_lr is 1e-06, but a constant rate stays at optimizer.lr",
    ),
    ({"optimizer.min_lr": -1.0}, "optimizer.min_lr is -1.0; it must lie between 0 and"),
    ({"optimizer.warmup_fraction": 1}, "optimizer.warmup_fraction is 1"),
    ({"optimizer.beta1": 1}, "optimizer.beta1 is 1"),
    ({"optimizer.beta2": -0.1}, "optimizer.beta2 is -0.1"),
    ({"optimizer.clip_grad": -1}, "neither may be negative"),
    ({"optimizer.weight_decay": -1}, "neither may be negative"),
    ({"optimizer.decay": "step"}, "optimizer.decay is step; it must be 'cosine'"),
    ({"train.fp8.parts": []}, "train.fp8.parts is []; name each of vision, language once"),
    ({"train.fp8.parts": ["connector"]}, "train.fp8.parts.0 is connector"),
    ({"train.fp8.emulation": True}, "train.fp8.recipe is none, so there is nothing to emulate"),
    ({"train.fp8.margin": 1}, "train.fp8.margin concerns the delayed recipe alone"),
    ({"train.fp8.last_layers_bf16": -1}, "train.fp8.last_layers_bf16 is -1; it must be 0"),
    (
        {"train.fp8.recipe": "delayed", "train.fp8.parts": ["vision", "language"]},
        "vision has none where a rank reads no image. Take it out of train.fp8.parts",
    ),
    (
        {"train.fp8.recipe": "delayed", "train.fp8.first_layers_bf16": 1},
        "train.fp8.recipe delayed knows no layers in bf16",
    ),
    (
        {"train.fp8.recipe": "current", "train.precision": "fp16"},
        "train.fp8.recipe is current and train.precision fp16; what is not computed in FP8",
    ),
    (
        {"train.fp8.recipe": "current", "train.layers": "torch"},
        "needs layers of Transformer Engine for language, and train.layers is torch",
    ),
    (
        {
            "train.fp8.recipe": "current",
            "train.fp8.parts": ["vision", "language"],
            "train.vision_layers": "torch",
        },
        "needs layers of Transformer Engine for vision, and train.vision_layers is torch",
    ),
    (
        {"train.fp8.recipe": "current", "data.sequence_length": 1000},
        "data.sequence_length is 1000 on one rank, and train.fp8.recipe current needs multiples",
    ),
    (
        {"train.fp8.recipe": "mxfp8", "model.language.ffn": 11024},
        "model.language.ffn is 11024 on one rank, and train.fp8.recipe mxfp8 needs multiples of 32",
    ),
    (
        {
            "train.fp8.recipe": "blockwise",
            "train.fp8.parts": ["vision"],
            "model.vision.ffn": 4100,
        },
        "model.vision.ffn is 4100 on one rank",
    ),
    ({"train.fp8.param_gather": True}, "Did you mean train.fp8.primary_weights?"),
    ({"train.fp8.primary_weights": True}, "train.fp8.recipe is none, so that nothing is in FP8"),
    (
        {
            "train.fp8.recipe": "current",
            "train.fp8.primary_weights": True,
            "train.trainable": ["connector", "language.head"],
        },
        "no layer that computes in FP8 does: train.trainable is [connector, language.head]",
    ),
    (
        {
            "train.fp8.recipe": "current",
            "train.fp8.primary_weights": True,
            "train.fp8.last_layers_bf16": 2,
            "train.trainable": ["language.layers[-2:]"],
        },
        "no layer that computes in FP8 does: train.trainable is [language.layers[-2:]]",
    ),
    (
        {
            "train.fp8.recipe": "current",
            "train.fp8.first_layers_bf16": 30,
            "train.fp8.last_layers_bf16": 2,
        },
        "first_layers_bf16 30 and last_layers_bf16 2 leave none of the 32 layers of language to",
    ),
    (
        {
            "train.fp8.recipe": "current",
            "train.fp8.parts": ["vision", "language"],
            "train.fp8.first_layers_bf16": 23,
        },
        "first_layers_bf16 23 and last_layers_bf16 0 leave none of the 23 layers of vision to FP8",
    ),
    ({"train.init_std": 0}, "train.init_std is 0.0; it must be greater than 0"),
    ({"train.trainable": []}, "name at least one of vision, connector, language"),
    ({"train.trainable": ["vision", "vision"]}, "names a part twice: vision, vision"),
    ({"parallel.tensor": 64}, "model.language.kv_heads 32 is not a multiple of parallel.tensor"),
    ({"parallel.tensor": 2, "model.language.ffn": 99}, "model.language.ffn 99 is not a multiple"),
    ({"parallel.tensor": 32}, "model.vision.heads 16 is not a multiple of parallel.tensor 32"),
    ({"parallel.tensor": 2, "model.vision.ffn": 99}, "model.vision.ffn 99 is not a multiple"),
    (
        {"parallel.tensor": 2, "parallel.sequence": True, "data.sequence_length": 999},
        "data.sequence_length 999 is not a multiple of parallel.tensor 2",
    ),
    ({"data.sequence_length": 8192}, "is greater than model.language.max_positions 4096"),
    ({"data.sequence_length": 144}, "one image takes 144 positions"),
    ({"train.steps": "many"}, "train.steps is many"),
    ({"train.steps": 1.5}, "train.steps is 1.5"),
    ({"train.resume": "perhaps"}, "train.resume is perhaps"),
    ({"train.trainable": "[unclosed"}, "is not valid YAML"),
    ({"train": "all"}, "train is all"),
]


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {value}.*; it must be greater than 0"):
        load_run([], {name: value})


@pytest.mark.parametrize(("overrides", "message"), REFUSALS, ids=lambda item: str(item)[:60])
def test_refusal_says_what_was_given(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run([], overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["optimizer.lr", "optimizer.clip_grad", "train.timeout_minutes"])
def test_not_a_number_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_run([], {name: ".nan"})


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
        ("train.wandb_project", "sink of figures but metrics.jsonl"),
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


@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_ranks_must_divide(world_size: int) -> None:
    config = load_run([], {"parallel.tensor": 2, "parallel.pipeline": 2})
    with pytest.raises(ConfigError, match=rf"{world_size} ranks do not divide .* Use a multiple"):
        config.check_world(world_size)


def test_the_global_batch_must_divide() -> None:
    config = load_run([], {"train.global_batch": 6, "train.micro_batch": 2})
    assert config.train.microbatches(3) == 1
    with pytest.raises(ConfigError, match=r"global_batch 6 is not a multiple of .* 2 x 2 = 4"):
        config.check_world(2)


def test_interleaving_needs_microbatches_in_multiples_of_the_pipeline() -> None:
    config = load_run([], {"parallel.pipeline": 2, "parallel.virtual": 2, "train.global_batch": 3})
    with pytest.raises(ConfigError, match=r"microbatches per step \(3\) in multiples of"):
        config.check_world(2)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("linear", 576),
        ("mlp2x_gelu", 576),
        ("mlpNx_gelu", 576),
        ("downsample_linear", 144),
        ("mlp_downsample", 144),
        ("mlp_downsample_3x3_fix", 64),
        ("mlp_downsample_3x3_s2", 64),
        ("mlp_downsample_3x3_s2_new", 64),
        ("pooling", 144),
        ("transformer", 576),
        ("qformer", 32),
    ],
)
def test_visual_tokens_at_336_pixels_are_the_papers(kind: str, tokens: int) -> None:
    assert load_run([], {"model.connector.kind": kind}).model.visual_tokens() == tokens


def test_a_connector_is_its_kind_or_a_mapping() -> None:
    assert connector_from_text("linear") == ConnectorConfig(kind="linear")
    pooling = connector_from_text("{kind: pooling, side: 8}")
    assert pooling == ConnectorConfig(kind="pooling", side=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner", "model.connector.kind is liner; it must be 'linear'"),
        ("{kind: pooling, sid: 8}", "sid is not an option. Did you mean side"),
        ("{kind: linear, side: 8}", "kind linear has no such option"),
        ("[linear]", r"connector is \[linear\]; give a kind, or its options such as {kind: pool"),
        ("{kind: [", "give a kind, or its options"),
        ("", "give a kind, or its options"),
    ],
)
def test_what_is_no_connector_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connector_from_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "is_split"),
    [
        ({}, False),  # 33.6 million weights
        ({"model.connector.kind": "qformer"}, True),  # 105 million
        ({"model.connector.kind": "qformer", "parallel.tensor": 8}, False),  # heads do not divide
        ({"model.connector.kind": "qformer", "parallel.tensor": 1}, False),
        ({"model.connector.kind": "qformer", "parallel.connector_placement": "replicated"}, False),
        ({"parallel.connector_placement": "split"}, True),
        ({"parallel.connector_placement": "split", "parallel.tensor": 1}, False),
    ],
)
def test_large_connectors_are_split(options: dict[str, Any], is_split: bool) -> None:
    assert load_run([], {"parallel.tensor": 4, **options}).splits_connector() == is_split


def test_a_connector_that_does_not_divide_is_not_split() -> None:
    options = {"model.connector.kind": "qformer", "parallel.tensor": 8}
    with pytest.raises(ConfigError, match=r"qformer do not divide by parallel\.tensor 8. Use repl"):
        load_run([], options | {"parallel.connector_placement": "split"})


def test_an_odd_grid_is_padded() -> None:
    config = load_run([], {"model.vision.image_size": 27 * 14})
    assert config.model.visual_tokens() == 14 * 14


def _parser() -> argparse.ArgumentParser:
    parser = ErrorRaisingParser()
    add_config_options(parser)
    return parser

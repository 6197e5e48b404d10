"""Every refusal of a value of the config, and of a number of ranks."""

from typing import Any

import pytest

from vila_mc.config.load import load_run
from vila_mc.errors import ConfigError

POSITIVE = [
    *(f"model.vision.{name}" for name in ("image_size", "patch_size", "width", "heads", "ffn")),
    *(f"model.language.{name}" for name in ("layers", "width", "ffn", "heads", "kv_heads")),
    *(f"model.language.{name}" for name in ("vocab_size", "max_positions", "rope_theta")),
    "model.language.norm_epsilon",
    *(f"parallel.{name}" for name in ("tensor", "pipeline", "virtual", "context")),
    *(f"optimizer.{name}" for name in ("lr", "epsilon")),
    *(f"train.{name}" for name in ("steps", "global_batch", "micro_batch", "save_every")),
    *(f"train.{name}" for name in ("keep_last", "timeout_minutes", "fp8.amax_history")),
]

TILES = {"model.vision.image_mode": "tiles"}
REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"train.timeout_minutes": 1e300},
        "train.timeout_minutes is 1e+300; it must be at most 10,080",
    ),
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
    ({"train.check_replicas_every": 0}, "train.check_replicas_every is 0; it must be greater"),
    ({"train.alarms.window": 4}, "train.alarms.window is 4; a median of fewer than 8 steps"),
    ({"train.alarms.compare_ranks_every": 0}, "train.alarms.compare_ranks_every is 0; it must"),
    ({"train.alarms.deviations": 0}, "train.alarms.deviations is 0.0; it must be greater than 0"),
    ({"train.alarms.data_wait": 20}, "train.alarms.data_wait is 20.0; it is a share and must be"),
    ({"train.alarms.straggler": 0.3}, "train.alarms.straggler is 0.3; it must be greater than 1"),
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
    ({"train.init_std": 1e30}, "train.init_std is 1e+30; it must be at most 1"),
    ({"model.language.norm_epsilon": 1e5}, "norm_epsilon is 100000.0; it must be less than 1"),
    (
        {"model.language.rope": 3},
        "model.language.rope is 3; give a mapping of its options: scaling, factor, low_frequency",
    ),
    ({"train.fp8": 3}, "train.fp8 is 3; give a mapping of its options: recipe, "),
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

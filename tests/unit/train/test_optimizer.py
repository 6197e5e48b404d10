"""The learning rate of a step and of a part, and what is said when it jumps."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.optimizer import jump_of_the_rate, rate_of
from vila_mc.train.step import Trainer


def _run(steps: int, **optimizer: Any) -> RunConfig:
    return tiny_run(
        optimizer={"lr": 1e-3, "warmup_fraction": 0.1} | optimizer, train={"steps": steps}
    )


def test_the_rate_of_a_step() -> None:
    run = _run(100, min_lr=1e-5)
    assert rate_of(run, 1) == pytest.approx(1e-4)
    assert rate_of(run, 10) == pytest.approx(1e-3)
    assert rate_of(run, 100) == pytest.approx(1e-5)
    assert rate_of(_run(1), 1) == 0.0


@pytest.mark.parametrize(
    ("before", "now", "step", "said"),
    [
        (_run(100), _run(200), 100, "from 0.00e+00 in step 100 to 5.78e-04"),  # a finished run
        (_run(100), _run(100, lr=1e-2), 50, "from 5.87e-04 in step 50 to 5.7"),
        (_run(100, decay="constant"), _run(100), 99, "from 1.00e-03 in step 99 to 0.00e+00"),
        (_run(100), _run(100), 50, None),
        (_run(100), _run(101), 50, None),
        (_run(100, decay="constant"), _run(1000, decay="constant"), 100, None),
    ],
)
def test_a_jump_is_said(before: RunConfig, now: RunConfig, step: int, said: str | None) -> None:
    line = jump_of_the_rate(before, now, step)
    assert (line is None) == (said is None)
    assert line is None or (said in line and "train.steps and optimizer.*" in line)


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("vision.conv1.weight", 2e-4 * 0.5**2, 0.01),
        ("vision.decoder.layers.0.mlp.linear_fc1.weight", 2e-4 * 0.5, 0.01),
        ("vision.decoder.layers.1.mlp.linear_fc1.weight", 2e-4, 0.01),
        ("vision.decoder.layers.1.mlp.linear_fc1.bias", 2e-4, 0.0),
        ("connector.fc1.weight", 1e-3, 0.5),
        ("language.decoder.layers.3.mlp.linear_fc1.weight", 1e-3, 0.0),
        ("language.decoder.final_layernorm.weight", 1e-3, 0.0),
    ],
)
def test_a_part_learns_at_its_own_rate(
    name: str, rate: float, decay: float, groups: dict[str, dict[str, float]]
) -> None:
    assert groups[name]["lr"] == pytest.approx(HALFWAY * rate, rel=1e-9)
    assert groups[name]["weight_decay"] == decay


HALFWAY = 0.55
"""Of each rate: half of the way of the cosine from 1 to 0.1."""


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[str, dict[str, float]]]:
    """The settings of every parameter of a model in the middle of training."""
    parts = {
        "vision": dict(lr=2e-4, layer_decay=0.5),
        "connector": dict(weight_decay=0.5),
        "language": dict(weight_decay=0.0),
    }
    optimizer = dict(lr=1e-3, min_lr=1e-4, weight_decay=0.01, warmup_fraction=0.0, parts=parts)
    config = tiny_run(optimizer=optimizer, train={"steps": 100})
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        trainer = Trainer(config, ranks, stages)
        trainer.scheduler.step(50)
        (part,) = trainer.optimizer.chained_optimizers
        names = {id(weight): name for name, weight in stages[0].named_parameters()}
        yield {
            names[id(weight)]: {key: group[key] for key in ("lr", "weight_decay")}
            for group, weights in zip(part.param_groups, part.model_fp32_groups, strict=True)
            for weight in weights
        }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vision": {"lr": 0}}, "optimizer.parts.vision.lr is 0.0; it must be greater than 0"),
        ({"language": {"weight_decay": -1}}, "parts.language.weight_decay is -1.0; it may not be"),
        ({"vision": {"layer_decay": 1.5}}, "layer_decay is 1.5; it must be greater than 0 and at"),
        ({"connector": {"layer_decay": 0.5}}, "optimizer.parts.connector.layer_decay is not an"),
    ],
)
def test_settings_of_a_part_that_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(optimizer={"parts": parts})


NORM_ALONE = {"trainable": ["language.norm"]}


@pytest.mark.parametrize(
    ("optimizer", "train", "lora", "message"),
    [
        (
            {"parts": {"vision": {"lr": 1e-4}}},
            {"trainable": ["connector", "language.head"]},
            {},
            r"parts\.vision\.lr is given, but vision does not learn: train\.trainable is "
            r"\[connector, language\.head\]\. Leave it out, or name vision in train\.trainable",
        ),
        (
            {"parts": {"vision": {"layer_decay": 0.9}}},
            {"trainable": ["connector"]},
            {},
            r"parts\.vision\.layer_decay is given, but vision does not learn",
        ),
        (
            {"parts": {"connector": {"weight_decay": 0.0}}},
            {"trainable": []},
            {"rank": 2},
            r"connector\.weight_decay is given, .*trainable is \[\] and lora gives connector no",
        ),
        ({"parts": {"language": {"lr": 1e-4}}}, {"trainable": ["vision"]}, {}, "language does not"),
        (
            {"parts": {"language": {"weight_decay": 0.1}}},
            {"trainable": ["language.norm", "connector"]},
            {},
            r"language\.weight_decay is given, but of language only norms learn, which never decay",
        ),
        ({"weight_decay": 0.1}, NORM_ALONE, {}, r"weight_decay is 0\.1, but only norms learn"),
    ],
)
def test_settings_that_reach_nothing_that_learns_are_refused(
    optimizer: dict[str, Any], train: dict[str, Any], lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_run(optimizer=optimizer, train=train, lora=lora)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "train", "lora"),
    [
        ({"parts": {"vision": {"lr": 1e-4, "layer_decay": 0.9}}}, {"trainable": []}, "fc1"),
        ({"parts": {"language": {"lr": 1e-4, "weight_decay": 0.1}}}, {"trainable": []}, "fc1"),
        ({"weight_decay": 0, "parts": {"language": {"lr": 1e-4}}}, NORM_ALONE, None),
        ({"weight_decay": 0.1}, {"trainable": ["language.norm", "connector"]}, None),
    ],
)
def test_a_part_that_learns_by_adapters_or_norms_takes_settings(
    optimizer: dict[str, Any], train: dict[str, Any], lora: str | None
) -> None:
    adapters = {"rank": 2, "vision_targets": [lora]} if lora else {}
    tiny_run(optimizer=optimizer, train=train, lora=adapters)

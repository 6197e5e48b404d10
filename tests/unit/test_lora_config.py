"""What may be said of adapters, and what is refused before anything is built."""

from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.lora import ADAPTABLE, LoraConfig, is_adapter
from vila_mc.errors import ConfigError

CONNECTOR = {"trainable": ["connector"]}


@pytest.mark.parametrize(
    ("lora", "train", "message"),
    [
        (dict(rank=0), CONNECTOR, r"lora\.rank is 0; it must be greater than 0"),
        (dict(rank=-4), CONNECTOR, r"lora\.rank is -4; it must be greater than 0"),
        (dict(rank=65), CONNECTOR, r"lora\.rank is 65, more than model\.language\.width 64"),
        (
            dict(rank=33, vision_targets=["fc1"]),
            CONNECTOR,
            r"lora\.rank is 33, more than model\.vision\.width 32",
        ),
        (
            dict(rank=4, alpha=1e30),
            CONNECTOR,
            r"lora\.alpha is 1e\+30, .* = 2\.5e\+29; that must be 1e-06 to 1000\. .* usual: 8",
        ),
        (dict(rank=4, alpha=1e-9), CONNECTOR, r"lora\.alpha is 1e-09, .* = 2\.5e-10; that must"),
        (dict(rank=4, alpha=0), CONNECTOR, r"lora\.alpha is 0\.0; it must be greater"),
        (dict(rank=4, dropout=1), CONNECTOR, r"lora\.dropout is 1\.0; it must be at least 0"),
        (
            dict(rank=4, targets=["query"]),
            CONNECTOR,
            r"lora\.targets\.0 is query; .*'q_proj', 'k_proj', .* or 'down_proj'",
        ),
        (
            dict(rank=4, vision_targets=["o_proj"]),
            CONNECTOR,
            r"lora\.vision_targets\.0 is o_proj; .*'out_proj', 'fc1' or 'fc2'",
        ),
        (dict(rank=4, targets=[]), CONNECTOR, r"lora\.targets and lora\.vision_targets are both"),
        (dict(rank=4, targets=["q_proj"] * 2), CONNECTOR, r"lora\.targets names a projection twic"),
        (dict(alpha=4), CONNECTOR, r"lora\.alpha is given, but lora\.rank is none"),
        (dict(targets=["q_proj"]), CONNECTOR, r"lora\.targets is given, but lora\.rank is none"),
        (
            dict(rank=4),
            {"trainable": ["connector", "language"]},
            r"train\.trainable names language, .* of lora\.rank 4\. Set .* to \[connector\]",
        ),
        (
            dict(rank=4, vision_targets=["fc1"]),
            {"trainable": ["vision"]},
            r"train\.trainable names vision, .* of lora\.rank 4\. Set train\.trainable to \[\]",
        ),
        (
            dict(rank=4),
            {"trainable": ["language.head", "language.layers[2:]"]},
            r"names language\.layers\[2:\], whose layers .* Set .* to \[language\.head\]",
        ),
        (dict(), {"trainable": []}, r"train\.trainable is empty; name at least one of vision"),
    ],
    ids=str,
)
def test_refusals(lora: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(lora=lora, train=train)


def test_what_follows_from_it() -> None:
    run = tiny_run(lora=dict(rank=4, vision_targets=["fc1"]), train={"trainable": []})
    assert run.lora.scale() == 2
    assert run.lora.parts() == ("vision", "language")
    layers = {f"vision.layers.{i}" for i in range(2)} | {f"language.layers.{i}" for i in range(4)}
    assert run.adapted_pieces() == layers
    beside = ["language.head", "language.embedding", "vision.layers[0:1]", "connector"]
    tiny_run(
        lora=dict(rank=4),
        train={"trainable": beside},
        model={"language": {"tied_embeddings": True}},
    )
    assert run.lora.targets_of("vision") == ("fc1",)
    assert tiny_run(lora=dict(rank=4, alpha=2), train=CONNECTOR).lora.scale() == 0.5
    without = LoraConfig()
    assert without.parts() == () == without.targets_of("language")


def test_every_target_has_one_place_and_adapters_are_told_by_their_names() -> None:
    for part, layers in ADAPTABLE.items():
        targets = [target for layer in layers for target in layer.targets]
        assert len(set(targets)) == len(targets) == (6 if part == "vision" else 7)
    assert is_adapter("language.decoder.layers.mlp.linear_fc1.lora_b_up_proj")
    assert not is_adapter("language.decoder.layers.mlp.linear_fc1.weight")

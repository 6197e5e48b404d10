"""What may be named in train.trainable, and what the names stand for."""

from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.model import ModelConfig
from vila_mc.config.trainable import learning_pieces, piece_of, pieces, with_backward
from vila_mc.errors import ConfigError
from vila_mc.topology.shapes import model_parameters

MODEL = tiny_run().model  # 2 layers of the tower run, and 4 of the language model


def _layers(part: str, *layers: int) -> set[str]:
    return {f"{part}.layers.{layer}" for layer in layers}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connector", {"connector"}),
        ("vision", {"vision.embedding", *_layers("vision", 0, 1)}),
        ("vision.embedding", {"vision.embedding"}),
        ("vision.layers", _layers("vision", 0, 1)),
        ("vision.layers[-1:]", _layers("vision", 1)),
        ("language.layers[1:3]", _layers("language", 1, 2)),
        ("language.layers[:-2]", _layers("language", 0, 1)),
        ("language.layers[::2]", _layers("language", 0, 2)),
        ("language.layers[-1]", _layers("language", 3)),
        ("language.norm", {"language.norm"}),
        ("language.head", {"language.head"}),
    ],
)
def test_a_name_stands_for(name: str, expected: set[str]) -> None:
    assert learning_pieces([name], MODEL) == expected


def test_the_parts_are_the_whole_model() -> None:
    everything = learning_pieces(["vision", "connector", "language"], MODEL)
    assert everything == set(pieces(MODEL))
    assert {piece_of(each.name) for each in model_parameters(MODEL)} == everything


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (["adapter"], r"names adapter, which is no part of the model\. There are vision, vision\."),
        (["vision.norm"], "names vision.norm, which is no part"),
        (["language.layers[A:B]"], r"names language.layers\[A:B\], which is no part"),
        (["language.layers[::0]"], "which is no part"),
        (["connector.layers[0:1]"], "which is no part"),
        (["language.layers[0:5]"], "there are 4 layers that run, 0 to 3. Keep within -4 and 4"),
        (["vision.layers[-3:]"], "there are 2 layers that run, 0 to 1. Keep within -2 and 2"),
        (["language.layers[4]"], "Keep within -4 and 3"),
        (["language.layers[3:2]"], "holds none of the 4 layers"),
        (["language", "language.head"], "language.head twice, in language and in language.head"),
        (["language.layers[0:2]", "language.layers[1:3]"], "names language.layers.1 twice"),
    ],
)
def test_a_name_is_refused(trainable: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(train={"trainable": trainable})


@pytest.mark.parametrize(
    ("trainable", "is_allowed"),
    [
        (["language.head"], False),
        (["connector", "language.embedding"], False),
        (["language.head", "language.embedding"], True),
        (["language"], True),
        (["language.layers"], True),
    ],
)
def test_a_tied_table_learns_or_not(trainable: list[str], is_allowed: bool) -> None:
    options: dict[str, Any] = {"model": {"language": {"layers": 4, "tied_embeddings": True}}}
    if is_allowed:
        tiny_run(train={"trainable": trainable}, **options)
        return
    with pytest.raises(ConfigError, match=r"alone, but .* are one table\. Name both or neither"):
        tiny_run(train={"trainable": trainable}, **options)


@pytest.mark.parametrize(
    ("trainable", "without_backward"),
    [
        (["vision"], {"language.embedding"}),
        (["connector"], {"vision.embedding", "language.embedding", *_layers("vision", 0, 1)}),
        (["vision.layers[1]"], {"vision.embedding", "vision.layers.0", "language.embedding"}),
        (["language.head"], set(pieces(MODEL)) - {"language.head"}),
        (["language.layers[2:]", "language.embedding"], {"connector", "vision"}),
    ],
)
def test_where_a_gradient_goes(trainable: list[str], without_backward: set[str]) -> None:
    reached = with_backward(learning_pieces(trainable, MODEL), MODEL)
    parts = {piece for piece in pieces(MODEL) if piece.split(".")[0] in without_backward}
    assert set(pieces(MODEL)) - reached == (without_backward & set(pieces(MODEL))) | parts


def test_nothing_learns_nowhere() -> None:
    assert with_backward([], ModelConfig()) == set()

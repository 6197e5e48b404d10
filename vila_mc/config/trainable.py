"""What learns, down to single layers: the names that ``train.trainable`` takes.

A *piece* is the least that learns or is frozen as one: ``vision.embedding``, ``vision.layers.3``,
``connector``, ``language.norm``.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from vila_mc.config.checks import require
from vila_mc.config.model import ModelConfig

NAMES = (
    "vision",
    "vision.embedding",
    "vision.layers[A:B]",
    "connector",
    "language",
    "language.embedding",
    "language.layers[A:B]",
    "language.norm",
    "language.head",
)
"""What ``train.trainable`` may name; ``[A:B]`` is a slice as in Python, and may be left out."""

_LAYERS = re.compile(r"(vision|language)\.layers(?:\[(.*)\])?")
_INTEGER = r"-?\d{1,9}"
_INDEX = re.compile(_INTEGER)
_SLICE = re.compile(rf"({_INTEGER})?:({_INTEGER})?(?::({_INTEGER})?)?")
_LAYER_OF_PARAMETER = re.compile(r"(vision|language)\.decoder\.layers\.(\d+)\.")


def require_names(trainable: Sequence[str]) -> None:
    """Refuse what is no name of a part, whatever the model. Raises ConfigError."""
    for name in trainable:
        layers = _LAYERS.fullmatch(name)
        is_range = layers is not None and (layers[2] is None or _is_range(layers[2]))
        require(
            is_range or (layers is None and name in NAMES),
            f"train.trainable names {name}, which is no part of the model. There are "
            f"{', '.join(NAMES)}; [A:B] is a slice as in Python.",
        )


@lru_cache(maxsize=8)
def pieces(model: ModelConfig) -> tuple[str, ...]:
    """Every piece, from the pixels to the logits."""
    return (
        "vision.embedding",
        *(f"vision.layers.{layer}" for layer in range(model.vision.built_layers())),
        "connector",
        "language.embedding",
        *(f"language.layers.{layer}" for layer in range(model.language.layers)),
        "language.norm",
        "language.head",
    )


def learning_pieces(trainable: Sequence[str], model: ModelConfig) -> frozenset[str]:
    """The pieces that learn.

    Args:
        trainable: names, as in ``train.trainable``.
        model: decides how many layers there are.

    Raises:
        ConfigError: a name is none, its layers are not there, it names again what another has
            named, or only one side of a tied embedding is named.
    """
    return _learning(tuple(trainable), model)


@lru_cache(maxsize=8)  # the planner asks for each of thousands of layouts
def _learning(trainable: tuple[str, ...], model: ModelConfig) -> frozenset[str]:
    require_names(trainable)
    named: dict[str, str] = {}
    for name in trainable:
        for piece in _pieces_of(name, model):
            require(
                piece not in named,
                f"train.trainable names {piece} twice, in {named.get(piece)} and in {name}. Name "
                "it once.",
            )
            named[piece] = name
    sides = {"language.embedding", "language.head"} & named.keys()
    require(
        not model.language.tied_embeddings or len(sides) != 1,
        f"train.trainable names {next(iter(sides), None)} alone, but with "
        "model.language.tied_embeddings embedding and head are one table. Name both or neither.",
    )
    return frozenset(named)


def with_backward(learning: Collection[str], model: ModelConfig) -> frozenset[str]:
    """The pieces that a gradient ends in or passes through: all from the lowest that learns on.

    The embedding of tokens is beside the visual pieces, so that none passes through it.
    """
    ordered = pieces(model)
    lowest = next((at for at, piece in enumerate(ordered) if piece in learning), len(ordered))
    return frozenset(
        piece for piece in ordered[lowest:] if piece != "language.embedding" or piece in learning
    )


def piece_of(parameter: str) -> str:
    """The piece that a parameter belongs to, by its name in the whole model."""
    if match := _LAYER_OF_PARAMETER.match(parameter):
        return f"{match[1]}.layers.{match[2]}"
    for beginning, piece in (
        ("vision.", "vision.embedding"),
        ("connector.", "connector"),
        ("language.embedding.", "language.embedding"),
        ("language.decoder.final_layernorm.", "language.norm"),
        ("language.output_layer.", "language.head"),
    ):
        if parameter.startswith(beginning):
            return piece
    raise KeyError(parameter)


def _is_range(text: str) -> bool:
    match = _SLICE.fullmatch(text)
    return bool(_INDEX.fullmatch(text)) or (match is not None and int(match[3] or 1) != 0)


def _pieces_of(name: str, model: ModelConfig) -> list[str]:
    """What one name stands for, in order. Raises ConfigError."""
    layers = _LAYERS.fullmatch(name)
    if layers is None:
        return [piece for piece in pieces(model) if piece == name or piece.startswith(f"{name}.")]
    part, given = layers[1], layers[2]
    depth = model.vision.built_layers() if part == "vision" else model.language.layers
    every = range(depth)
    if given is None:
        chosen: Sequence[int] = every
    elif _INDEX.fullmatch(given):
        _require_within(name, [int(given)], depth, depth - 1)
        chosen = [every[int(given)]]
    else:
        match = _SLICE.fullmatch(given)
        assert match is not None, "require_names has looked"
        start, stop, step = (int(number) if number else None for number in match.groups())
        _require_within(name, [end for end in (start, stop) if end is not None], depth, depth)
        chosen = every[start:stop:step]
    require(
        len(chosen) > 0,
        f"train.trainable names {name}, which holds none of the {depth} layers. Name at least one.",
    )
    return [f"{part}.layers.{layer}" for layer in chosen]


def _require_within(name: str, ends: Sequence[int], depth: int, most: int) -> None:
    """Python cuts a slice that reaches too far; here it is a mistake. Raises ConfigError."""
    require(
        all(-depth <= end <= most for end in ends),
        f"train.trainable names {name}, but there are {depth} layers that run, 0 to {depth - 1}. "
        f"Keep within {-depth} and {most}.",
    )

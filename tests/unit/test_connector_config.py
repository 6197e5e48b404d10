"""What ``model.connector`` says: visual tokens, options that fit the tower, who shares it."""

import math
from pathlib import Path
from typing import Any

import pytest

from vila_mc.config.connectors import CONNECTORS, ConnectorConfig, ConnectorKind, Tower
from vila_mc.config.load import connector_from_text, load_run
from vila_mc.config.recipe import PRESETS
from vila_mc.errors import ConfigError
from vila_mc.topology.shapes import model_parameters


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
        ("mlp9x_gelu", r"'qformer'\. Did you mean mlpNx_gelu with model\.connector\.layers 9\?$"),
        ("mlp_downsample_2x2_fix", r"'qformer'\. Did you mean mlp_downsample\?$"),
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
    with pytest.raises(
        ConfigError, match=r"heads 12\) do not divide by parallel\.tensor 8\. Use repl"
    ):
        load_run([], options | {"parallel.connector_placement": "split"})


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_tower_that_is_too_narrow_is_refused(kind: ConnectorKind) -> None:
    """Where a layer would have no outputs, or a LayerNorm would see a single channel."""
    least = CONNECTORS[kind].least_width
    narrow: dict[str, Any] = {"model.connector.kind": kind, "model.vision.heads": 1}
    model = load_run([], narrow | {"model.vision.width": least}).model
    layers = model.connector_layers()
    assert all(min(layer.shape) > 0 for layer in layers)
    if least == 1:
        return
    assert min(layer.shape[0] for layer in layers if layer.is_norm) == 2
    with pytest.raises(ConfigError, match=rf"width is 5, .*{kind} narrows .* at least {least}, or"):
        load_run([], narrow | {"model.vision.width": least - 1})


def test_an_odd_grid_is_padded() -> None:
    config = load_run([], {"model.vision.image_size": 27 * 14})
    assert config.model.visual_tokens() == 14 * 14


SMALL = {"layers": 4, "width": 64, "heads": 4, "image_size": 48, "patch_size": 6}
FITTING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("qformer", {}, {"layers": 12, "queries": 32, "width": 768, "heads": 12}),
    ("qformer", SMALL, {"layers": 3, "queries": 32, "width": 64, "heads": 1}),
    ("qformer", SMALL | {"image_size": 24}, {"layers": 3, "queries": 16, "width": 64, "heads": 1}),
    ("qformer", {"width": 200, "heads": 2}, {"layers": 12, "width": 200, "heads": 2}),
    ("transformer", {}, {"layers": 1, "heads": 16}),
    ("transformer", SMALL, {"layers": 1, "heads": 4}),
    ("pooling", {}, {"side": 12}),
    ("pooling", SMALL, {"side": 4}),
    ("pooling", {"image_size": 378}, {"side": 14}),  # of 27 patches
    ("pooling", {"image_size": 14}, {"side": 1}),
]


@pytest.mark.parametrize(("kind", "vision", "expected"), FITTING)
def test_options_that_are_not_given_fit_the_tower(
    kind: str, vision: dict[str, Any], expected: dict[str, Any]
) -> None:
    given = {f"model.vision.{name}": value for name, value in vision.items()}
    connector = load_run([], {"model.connector.kind": kind, **given}).model.connector
    assert {name: getattr(connector, name) for name in expected} == expected
    assert None not in [getattr(connector, name) for name in connector.facts().options]
    said = {"side", "width"} & expected.keys()  # of a title: what the tower decides
    assert all(f"{name} {expected[name]}" in connector.title() for name in said)


def test_options_that_are_given_stay() -> None:
    connector = ConnectorConfig(kind="qformer", width=96, queries=5, layers=2)
    fitted = connector.behind(Tower(layers=3, width=64, heads=4, grid=4))
    assert (fitted.width, fitted.queries, fitted.layers, fitted.heads) == (96, 5, 2, 1)
    assert fitted.behind(Tower(layers=23, width=1024, heads=16, grid=24)) == fitted


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_kind_fits_the_presets_as_it_is(kind: str, preset: str) -> None:
    model = load_run([Path(f"preset:{preset}")], {"model.connector.kind": kind}).model
    assert model.visual_tokens() <= model.vision.grid() ** 2
    weights = {each.name: math.prod(each.shape) for each in model_parameters(model)}
    own = sum(count for name, count in weights.items() if name.startswith("connector."))
    assert own < sum(weights.values()) / 2

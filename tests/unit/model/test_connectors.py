"""Connectors compute what their formulas say, forward and backward, and are known everywhere."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.support.connectors import CASES, blip2_qformer, connector_of, options_of, plain
from tests.support.tiny import tiny_run
from vila_mc.config import connectors
from vila_mc.config.connectors import (
    CONNECTORS,
    ConnectorConfig,
    ConnectorFacts,
    ConnectorKind,
    ConnectorLayer,
    Tower,
)
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.hf_vila import FORMAT
from vila_mc.convert.names import connector_rows, connector_table
from vila_mc.errors import ConfigError
from vila_mc.model.connectors.connector import Connector, build_connector
from vila_mc.model.megatron_config import language_config
from vila_mc.topology.shapes import model_parameters

PATCH = 7
TOLERANCE = 1e-5


def _model(name: str, grid: int = 4, family: str = "clip") -> ModelConfig:
    vision = dict(family=family, image_size=grid * PATCH)
    return tiny_run(model={"vision": VISION | vision, "connector": options_of(name)}).model


VISION = dict(patch_size=PATCH, width=32, layers=3, heads=4, ffn=64)


def _built(model: ModelConfig) -> Connector:
    torch.manual_seed(6)
    built = build_connector(language_config(tiny_run()), model)
    with torch.no_grad():  # norms start at 1 and 0, where a forgotten one would not show
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return built


def test_every_kind_is_in_the_registry_and_has_a_case() -> None:
    assert {connector_of(kind).kind for kind in get_args(ConnectorKind)} == set(CONNECTORS)
    assert all(facts.kind == kind for kind, facts in CONNECTORS.items())
    assert set(get_args(ConnectorKind)) <= set(CASES)


def _grids() -> Iterator[tuple[str, int, str]]:
    """Odd and even grids, down to the least; with and without a class token."""
    for name in CASES:
        least = connector_of(name).side or 1
        for grid in (5, 4, least):
            yield name, grid, "clip"
        yield name, 5, "siglip"


@pytest.mark.parametrize(("name", "grid", "family"), _grids())
def test_it_computes_its_formula_forward_and_backward(name: str, grid: int, family: str) -> None:
    model = _model(name, grid, family)
    built = _built(model)
    weights = {n: w.detach().clone().requires_grad_() for n, w in built.named_parameters()}
    class_tokens = model.vision.facts().class_tokens
    features = torch.randn(2, class_tokens + grid**2, model.vision.width, requires_grad=True)
    patches = features.detach()[:, class_tokens:].clone().requires_grad_()
    visual, expected = built(features), plain(model.connector, weights, patches)
    assert expected.shape == (2, model.visual_tokens(), model.language.width)
    assert expected.std() > 0.1, "a comparison of zeros proves nothing"
    _assert_near(visual, expected)
    asked = torch.randn_like(expected)
    visual.backward(asked)
    expected.backward(asked)
    assert features.grad is not None
    assert patches.grad is not None
    _assert_near(features.grad[:, class_tokens:], patches.grad)
    assert not features.grad[:, :class_tokens].any()
    for each, weight in built.named_parameters():
        given, right = weight.grad, weights[each].grad
        assert given is not None, each
        assert right is not None, each
        _assert_near(given, right, each)


def _assert_near(given: Tensor, expected: Tensor, what: str = "") -> None:
    """Relative to the largest, as sums over many terms are."""
    scale = max(1.0, expected.abs().max().item())
    assert (given - expected).abs().max().item() < TOLERANCE * scale, what


@pytest.mark.parametrize("name", CASES)
def test_a_module_holds_what_the_facts_say(name: str) -> None:
    model = _model(name)
    built = _built(model)
    shapes = {f"connector.{n}": tuple(p.shape) for n, p in built.named_parameters()}
    planned = {p.name: p.shape for p in model_parameters(model)}
    assert list(shapes.items()) == [
        (n, s) for n, s in planned.items() if n.startswith("connector.")
    ]
    assert shapes == connector_table(model, FORMAT.naming).our_shapes()


@pytest.mark.parametrize("is_narrow", [False, True])
def test_weights_start_as_wide_as_their_inputs_or_their_kind_ask_for(is_narrow: bool) -> None:
    connector = dict(kind="qformer", queries=60, width=64, heads=4, layers=2)
    model = tiny_run(model={"connector": connector}, data={"sequence_length": 64}).model
    torch.manual_seed(1)
    built = build_connector(language_config(tiny_run()), model, is_narrow=is_narrow)
    assert built.queries.weight.std().item() == pytest.approx(0.02, rel=0.1)
    fc1 = built.get_submodule("blocks.1.fc1")
    wide = (2 if is_narrow else 1 / 3) ** 0.5 / 64**0.5
    assert fc1.weight.std().item() == pytest.approx(wide, rel=0.1)
    assert (built.norm.weight == 1).all()
    assert not built.norm.bias.any()


WIDTHS = {
    "linear": "6-10",
    "mlp1x_gelu": "6-10",
    "mlp3x_gelu": "6-10-10-10",
    "downsample_linear": "24-10",
    "mlp_downsample": "24-10-10",
    "mlp_downsample_3x3_fix": "54-18-10-10",
    "mlp_downsample_3x3_s2": "54-18-6-2-10-10",
    "mlp_downsample_3x3_s2_new": "54-24-12-6-2-10-10",
    "pooling": "6-10-10",
}
"""Of linear layers between a tower of width 6 and a language model of width 10."""


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_are_those_of_the_public_code(name: str) -> None:
    layers = [each.shape for each in connector_of(name).weights(6, 10) if not each.is_norm]
    assert "-".join(map(str, [layers[0][1], *(shape[0] for shape in layers)])) == WIDTHS[name]


def test_a_qformer_is_as_large_as_blip_2s() -> None:
    connector = ConnectorConfig(kind="qformer").behind(Tower(39, 1408, 16, 16))
    with torch.device("meta"):
        theirs = blip2_qformer(connector, 1408)
    inner = [each for each in connector.weights(1408, 10) if each.name not in ("queries", "fc")]
    count = sum(math.prod(shape) for each in inner for shape in each.parameters().values())
    assert count == sum(weight.numel() for weight in theirs.parameters())


def test_a_kind_of_the_public_code_is_one_of_ours() -> None:
    assert ConnectorConfig(kind="mlp2x_gelu") == ConnectorConfig(kind="mlpNx_gelu", layers=2)
    assert ConnectorConfig(kind="mlpNx_gelu", layers=4).title() == "mlp4x_gelu"
    by_columns = ConnectorConfig(kind="mlp_downsample", token_order="columns")
    assert by_columns.title() == "mlp_downsample (token_order columns)"


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(kind="linear", layers=2), "layers is 2, but model.connector.kind linear has no such"),
    (dict(kind="mlp2x_gelu", layers=3), "kind mlp2x_gelu has 2. Use the kind mlpNx_gelu"),
    (dict(kind="mlpNx_gelu", layers=0), "layers is 0; it must be greater than 0"),
    (dict(kind="mlpNx_gelu", side=2), r"side is 2, .* \(it has layers\).* use one of pooling"),
    (dict(kind="linear", token_order="columns"), "kind linear folds no blocks of patches"),
    (dict(kind="pooling", side=5), "side is 5, but an image has only 4 x 4 patches"),
    (dict(kind="pooling", side=0), "side is 0; it must be greater than 0"),
    (dict(kind="qformer", width=10, heads=3), "connector.width 10 is not a multiple of model.conn"),
    (dict(kind="transformer", heads=5), "vision.width 32 is not a multiple of model.connector.hea"),
    (dict(kind="transformer", width=64), "width is 64, .* no such option .* use one of qformer"),
    (dict(kind="qformer", queries=32), "one image takes 32 positions, but data.sequence_length is"),
    (dict(kind="pooling", pooling="largest"), "pooling is largest; it must be"),
    (dict(kind="mlp4x_gelu"), "kind is mlp4x_gelu; it must be"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_options_that_are_not_the_kinds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_run(model={"connector": options})
    assert "\n" not in str(caught.value)


class _Average(Connector):
    """A kind that nobody has: the mean of every 3x3 block, then one layer."""

    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        return torch.zeros(len(features_npe), 1, self.fc1.out_features)


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> ConnectorKind:
    kind: Any = "average"
    facts = ConnectorFacts(
        kind=kind,
        layers=lambda _, e, h: iter([ConnectorLayer("fc1", (h, 9 * e))]),
        block=3,
        module="average",
    )
    module = ModuleType("average")
    module.CONNECTOR = _Average  # type: ignore[attr-defined]
    monkeypatch.setitem(connectors.CONNECTORS, kind, facts)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "vila_mc.model.connectors.average", module)
    return kind  # type: ignore[no-any-return]


def test_a_pretended_kind_has_shapes_and_names_from_its_facts(average: ConnectorKind) -> None:
    config = tiny_run()
    model = replace(config.model, connector=ConnectorConfig(kind=average))
    built = build_connector(language_config(config), model)
    width, channels = model.language.width, 9 * model.vision.width
    assert built.fc1.weight.shape == (width, channels)
    assert model.visual_tokens() == (-(-model.vision.grid() // 3)) ** 2
    planned = [p for p in model_parameters(model) if p.name.startswith("connector.")]
    assert [p.shape for p in planned] == [(width, channels), (width,)]
    assert [row.ours for row in connector_rows()(model) or ()] == [p.name for p in planned]

"""The registry of connectors: each has its module, and one more needs no other place."""

import sys
from dataclasses import replace
from types import ModuleType
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.support.tiny import tiny_run
from vila_mc.config import connectors
from vila_mc.config.connectors import CONNECTORS, ConnectorConfig, ConnectorFacts, ConnectorKind
from vila_mc.convert.formats.hf_vila import FORMAT
from vila_mc.convert.names import connector_rows, connector_table
from vila_mc.model.connectors.connector import Connector, build_connector
from vila_mc.model.megatron_config import language_config
from vila_mc.topology.shapes import model_parameters


class _Average(Connector):
    """A kind that nobody has: the mean of every 3x3 block, then one layer."""

    def forward(self, features_npe: Tensor) -> Tensor:
        return torch.zeros(len(features_npe), 1, self.fc1.out_features)


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> str:
    facts = ConnectorFacts(kind="average", factor=3, layers={"fc1": "h c"})  # type: ignore[arg-type]
    module = ModuleType("average")
    module.CONNECTOR = _Average  # type: ignore[attr-defined]
    monkeypatch.setitem(connectors.CONNECTORS, "average", facts)  # type: ignore[misc, arg-type]
    monkeypatch.setitem(sys.modules, "vila_mc.model.connectors.average", module)
    return "average"


def test_kinds_are_those_of_the_registry() -> None:
    assert tuple(CONNECTORS) == get_args(ConnectorKind)


@pytest.mark.parametrize("kind", get_args(ConnectorKind))
def test_a_module_holds_what_the_facts_say(kind: ConnectorKind) -> None:
    config = tiny_run(model={"connector": {"kind": kind}})
    built = build_connector(language_config(config), config.model)
    shapes = {f"connector.{name}": tuple(p.shape) for name, p in built.named_parameters()}
    planned = {p.name: p.shape for p in model_parameters(config.model)}
    assert shapes == {n: s for n, s in planned.items() if n.startswith("connector.")}
    assert shapes == connector_table(config.model, FORMAT.naming).our_shapes()


def test_a_pretended_kind_has_shapes_and_names_from_its_facts(average: ConnectorKind) -> None:
    config = tiny_run()
    model = replace(config.model, connector=ConnectorConfig(kind=average))
    built = build_connector(language_config(config), model)
    width, channels = model.language.width, 9 * model.vision.width
    assert built.fc1.weight.shape == (width, channels)
    assert model.visual_tokens() == (-(-model.vision.grid() // 3)) ** 2
    planned = [p for p in model_parameters(model) if p.name.startswith("connector.")]
    assert [p.shape for p in planned] == [(width, channels), (width,)]
    assert [row.ours for row in connector_rows(average)] == [p.name for p in planned]

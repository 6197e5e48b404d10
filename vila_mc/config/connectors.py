"""What tells connectors apart: one frozen value each, and nowhere else in the package.

A connector is a value here, a module of its name in ``model/connectors/``, and its formula in the
modelling file of exports. Names and shapes of its weights follow from the value everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vila_mc.config.checks import STRICT

ConnectorKind = Literal["linear", "mlp2x_gelu", "downsample_linear", "mlp_downsample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorFacts:
    """From patch features to visual tokens."""

    kind: ConnectorKind
    """As ``model.connector.kind`` has it."""
    factor: int
    """Side of the block of patches that becomes one visual token."""
    layers: Mapping[str, str]
    """Its layers in order, each with the shape of its weight in letters: c, channels of a block; h,
    width of the language model. All have a bias, as long as the weight's first axis; a weight of
    one axis is a LayerNorm's."""


CONNECTORS: Mapping[ConnectorKind, ConnectorFacts] = {
    facts.kind: facts
    for facts in (
        ConnectorFacts(kind="linear", factor=1, layers={"fc1": "h c"}),
        ConnectorFacts(kind="mlp2x_gelu", factor=1, layers={"fc1": "h c", "fc2": "h h"}),
        ConnectorFacts(kind="downsample_linear", factor=2, layers={"fc1": "h c"}),
        ConnectorFacts(
            kind="mlp_downsample", factor=2, layers={"norm": "c", "fc1": "h c", "fc2": "h h"}
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """What turns patch features into visual tokens (VILA, section 3 and Table 7)."""

    __pydantic_config__ = STRICT

    kind: ConnectorKind = "mlp_downsample"
    """linear, mlp2x_gelu (one token per patch); downsample_linear, mlp_downsample (one per 2x2)."""

    def factor(self) -> int:
        """Side of the block of patches folded into one token."""
        return CONNECTORS[self.kind].factor

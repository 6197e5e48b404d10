"""What each kind of connector keeps for its backward pass: a formula per way to compute it.

Counted are the storages that autograd holds of one image, weights aside, where the connector
learns. A test compares them with what the modules of ``model/connectors/`` really hold.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vila_mc.config.connectors import ConnectorConfig

HIDDEN_KEPT = 0.35
"""Share of its hidden layer that mlp_downsample keeps. Each tenth saves 1.7 % of the time (a tenth
of one of six products) and takes 2.5 % of the memory that the chain of single steps would keep."""
_STATISTICS = 8
"""Bytes that a LayerNorm keeps of a row: mean and deviation in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a connector stands between, and how it is shared and computed."""

    grid: int
    """Patches along one side of an image."""
    class_tokens: int
    vision_width: int
    language_width: int
    ranks: int = 1
    """Tensor-parallel ranks that share its matrices."""
    number: int = 2
    """Bytes of a number."""

    def patches(self) -> int:
        """Of an image."""
        return self.grid**2

    def feature_bytes(self) -> int:
        """Of what the tower gives for an image."""
        return self.number * (self.patches() + self.class_tokens) * self.vision_width


def by_mlp(connector: "ConnectorConfig", site: Site) -> float:
    """The input of every layer, and of the GELU between linear ones."""
    layers = connector.weights(site.vision_width, site.language_width)
    row = 0.0
    for layer in layers:
        if layer.is_norm:
            row += site.number * layer.shape[0] + _STATISTICS
            continue
        outputs, inputs = layer.shape
        row += site.number * inputs / (site.ranks if layer.split == "inputs" else 1)
        if layer != layers[-1]:
            row += site.number * outputs / (site.ranks if layer.split == "outputs" else 1)
    return connector.visual_tokens(site.grid) * row


def by_downsample_linear(_: "ConnectorConfig", site: Site) -> float:
    """The features alone."""
    return site.feature_bytes()


def by_mlp_downsample(connector: "ConnectorConfig", site: Site) -> float:
    """The features, statistics of the norm, and a part of the hidden layer."""
    hidden = site.number * HIDDEN_KEPT * site.language_width / site.ranks
    return site.feature_bytes() + connector.visual_tokens(site.grid) * (_STATISTICS + hidden)


def by_transformer(connector: "ConnectorConfig", site: Site) -> float:
    """Of each layer what both norms and products take in, and what attention does; at the end what
    the last product takes in."""
    width, heads = site.vision_width, connector.heads or 1
    layer = 4 * site.number * width + 2 * _STATISTICS + _between(site, width, heads)
    rows = site.patches() * ((connector.layers or 0) * layer + site.number * width)
    return rows + site.number * site.class_tokens * width  # beside the patches, in one storage


def by_qformer(connector: "ConnectorConfig", site: Site) -> float:
    """The same of the queries, whose norms come behind the sums; the patches, and in every layer
    that looks at them their keys and values."""
    width, heads, layers = connector.width or 0, connector.heads or 1, connector.layers or 0
    crossed = -(-layers // (connector.cross_attention_every or 1))
    added = 2 * site.number * width + _STATISTICS  # a sum, and its norm, which is read next
    layer = 2 * added + _between(site, width, heads)
    cross = added + (2 * site.number * width + 4 * heads) / site.ranks
    row = site.number * width + layers * layer + crossed * cross
    seen = site.number * (site.vision_width + crossed * 2 * width / site.ranks)
    return connector.visual_tokens(site.grid) * row + site.patches() * seen


def _between(site: Site, width: int, heads: int) -> float:
    """Of a row, between norms: queries, keys, values, what attention makes of them and its sums in
    fp32; the hidden layer of the feed-forward part before and after GELU."""
    return (site.number * (4 + 2 * 4) * width + 4 * heads) / site.ranks

"""What tells connectors apart: one frozen value each, and nowhere else in the package.

A connector is a value here, a module of ``model/connectors/`` that computes it (those that are
linear layers with GELU between share one), and its formula in the connector file of exports. Its
options, its visual tokens, and names and shapes of its weights follow from the value everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from vila_mc.config import connector_memory
from vila_mc.config.checks import STRICT, require, require_positive
from vila_mc.config.connector_memory import Site

ConnectorKind = Literal[
    "linear",
    "mlp2x_gelu",
    "mlpNx_gelu",
    "downsample_linear",
    "mlp_downsample",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
    "pooling",
    "transformer",
    "qformer",
]
TokenOrder = Literal["rows", "columns"]
Pooling = Literal["average", "bilinear"]
Split = Literal["whole", "outputs", "gathered", "inputs"]

_BERT_LAYERS, _BERT_WIDTH = 12, 768
"""Of the Q-Former that BLIP-2 starts from BERT-base."""
TABLE_STD = 0.02
"""Standard deviation that tables start with: that of BLIP-2, arXiv 2301.12597."""


@dataclass(frozen=True, slots=True)
class ConnectorLayer:
    """A layer with weights."""

    name: str
    """Dotted where it is part of a block."""
    shape: tuple[int, ...]
    """Of its weight: [width] of a LayerNorm, [outputs, inputs] of a linear layer, which both have a
    bias as long as the first axis; [rows, width] of a table."""
    is_table: bool = False
    """Whether it is rows that are learned as they are, without a bias."""
    reads_patches: bool = False
    """Whether it is applied to every patch where the others are to visual tokens."""
    epsilon: float = 1e-5
    """What a LayerNorm adds to the variance."""
    split: Split = "whole"
    """What tensor-parallel ranks share of a linear layer, where they share the connector: outputs,
    which the next layer takes so; outputs that are gathered; inputs, as the one before gives."""

    @property
    def is_norm(self) -> bool:
        """Whether it is a LayerNorm."""
        return len(self.shape) == 1

    def split_axis(self, part: str) -> int | None:
        """The axis of its weight or bias that ranks share."""
        if part == "bias":
            return 0 if self.split in ("outputs", "gathered") else None
        return {"whole": None, "outputs": 0, "gathered": 0, "inputs": 1}[self.split]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its weight and bias, by these names."""
        return {"weight": self.shape} | ({} if self.is_table else {"bias": self.shape[:1]})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """What turns patch features into visual tokens (VILA, section 3 and Table 7)."""

    __pydantic_config__ = STRICT

    kind: ConnectorKind = "mlp_downsample"
    """linear, mlpNx_gelu (one token per patch; mlp2x_gelu is mlpNx_gelu with 2 layers);
    downsample_linear, mlp_downsample (one per block of 2x2); mlp_downsample_3x3_fix,
    mlp_downsample_3x3_s2, mlp_downsample_3x3_s2_new (one per block of 3x3); pooling (patches pooled
    to side x side, then 2 layers); transformer (layers over the patches); qformer (learned queries
    that look at the patches)."""
    layers: int | None = None
    """mlpNx_gelu: linear layers (default: 2). transformer: transformer layers (default: 1).
    qformer: the same (default: as many as the tower, 12 at most)."""
    token_order: TokenOrder = "rows"
    """How visual tokens follow each other: rows; columns, of kinds with blocks alone, as in the
    public code before its release of 2024-12-12."""
    pooling: Pooling | None = None
    """pooling: how, average or bilinear (default: average)."""
    side: int | None = None
    """pooling: visual tokens along one side of an image (default: half of the patches, rounded
    up)."""
    queries: int | None = None
    """qformer: queries, which become the visual tokens (default: as many as patches, 32 at
    most)."""
    width: int | None = None
    """qformer: width of the queries (default: that of the tower, 768 at most)."""
    heads: int | None = None
    """transformer: attention heads (default: those of the tower). qformer: the same (default: one
    for each 64 of width)."""
    cross_attention_every: int | None = None
    """qformer: in every how many layers, from the first on, queries look at the patches (default:
    2)."""

    def __post_init__(self) -> None:
        if self.kind == "mlp2x_gelu":
            require(
                self.layers in (None, 2),
                f"model.connector.layers is {self.layers}, but model.connector.kind mlp2x_gelu has "
                "2. Use the kind mlpNx_gelu.",
            )
            object.__setattr__(self, "kind", "mlpNx_gelu")
        options = self.facts().options
        require(
            self.token_order == "rows" or self.facts().block > 1,
            f"model.connector.token_order is {self.token_order}, but model.connector.kind "
            f"{self.kind} folds no blocks of patches. Use rows.",
        )
        for name in OPTIONS:
            given = getattr(self, name)
            require(
                given is None or name in options,
                f"model.connector.{name} is {given}, but model.connector.kind {self.kind} has no "
                f"such option{_those_of(options)}. Leave it out, or use one of "
                f"{', '.join(facts.kind for facts in CONNECTORS.values() if name in facts.options)}"
                ".",
            )
            if given is None and name in options:
                object.__setattr__(self, name, options[name])
        sizes = {name: value for name, value in self.options().items() if isinstance(value, int)}
        require_positive("model.connector", **sizes)
        require(
            self.width is None or self.width % (self.heads or 1) == 0,
            f"model.connector.width {self.width} is not a multiple of model.connector.heads "
            f"{self.heads}. Change one of them.",
        )

    def facts(self) -> "ConnectorFacts":
        """What its kind decides."""
        return CONNECTORS[self.kind]

    def behind(self, tower: "Tower") -> "ConnectorConfig":
        """The same with every option said: what is not given becomes what fits the tower."""
        fitting: dict[str, Any] = {
            name: value
            for name, value in self.facts().fitting(self, tower).items()
            if getattr(self, name) is None
        }
        return replace(self, **fitting)

    def options(self) -> dict[str, int | str]:
        """The options that its kind has, by name; all of them ``behind`` a tower."""
        order = {"token_order": self.token_order} if self.facts().block > 1 else {}
        given = {name: getattr(self, name) for name in self.facts().options}
        return order | {name: value for name, value in given.items() if value is not None}

    def title(self) -> str:
        """What it is called in a line for people: its kind, and what is not as by default."""
        options, defaults = self.options(), {"token_order": "rows", **self.facts().options}
        name: str = self.kind
        if "Nx" in name:  # as the public code writes it
            name = name.replace("Nx", f"{options.pop('layers')}x")
        others = [f"{key} {value}" for key, value in options.items() if value != defaults[key]]
        return f"{name} ({', '.join(others)})" if others else name

    def visual_tokens(self, grid: int) -> int:
        """Visual tokens (q) of an image of ``grid x grid`` patches."""
        return self.facts().num_tokens(self, grid)

    def weights(self, vision_width: int, language_width: int) -> tuple[ConnectorLayer, ...]:
        """Its layers in order, between a tower and a language model of these widths."""
        return tuple(self.facts().layers(self, vision_width, language_width))

    def kept_bytes(self, site: Site) -> float:
        """What an image leaves for the backward pass of a connector that learns, on one rank."""
        return self.facts().kept(self, site)


def _one_per_block(connector: ConnectorConfig, grid: int) -> int:
    """An odd grid is filled up at the bottom and right."""
    side = -(-grid // connector.facts().block)
    return side * side


@dataclass(frozen=True, slots=True)
class Tower:
    """What decides the options of a connector that are not given."""

    layers: int
    """That run."""
    width: int
    heads: int
    grid: int
    """Patches along one side."""


def _as_any_tower(connector: ConnectorConfig, tower: Tower) -> dict[str, int]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorFacts:
    """From patch features to visual tokens."""

    kind: ConnectorKind
    """As ``model.connector.kind`` has it."""
    layers: Callable[[ConnectorConfig, int, int], Iterator[ConnectorLayer]]
    """Its layers in order, from its options, the tower's width (e) and the language model's (h)."""
    kept: Callable[[ConnectorConfig, Site], float] = connector_memory.by_mlp
    """Bytes that an image leaves for its backward pass, where it learns."""
    block: int = 1
    """Side of the block of patches that is folded into one token."""
    num_tokens: Callable[[ConnectorConfig, int], int] = _one_per_block
    """Visual tokens of an image, from its options and the patches along one side."""
    least_width: int = 1
    """Of the tower: behind a narrower one, a layer would have no outputs, or a LayerNorm a single
    channel, which is the same of every image."""
    options: Mapping[str, int | str | None] = field(default_factory=dict)
    """Options that concern it alone, with their defaults; None where the tower decides."""
    fitting: Callable[[ConnectorConfig, Tower], dict[str, int]] = _as_any_tower
    """What the tower decides, of options that may be given all the same."""
    module: str = "mlp"
    """The module of ``model/connectors/`` that computes it."""


def _those_of(options: Mapping[str, int | str | None]) -> str:
    return f" (it has {', '.join(options)})" if options else ""


def _mlp(*widths: int, has_norms: bool = False) -> Iterator[ConnectorLayer]:
    """Linear layers with GELU between; with ``has_norms`` a LayerNorm before each but the last."""
    last = len(widths) - 1
    split: Split = "whole"
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        if has_norms and number < last:
            yield ConnectorLayer("norm" if last == 2 else f"norm{number}", (inputs,))
        is_before_another = number < last and not (has_norms and number + 1 < last)
        split = "inputs" if split == "outputs" else "outputs" if is_before_another else "gathered"
        yield ConnectorLayer(f"fc{number}", (outputs, inputs), split=split)


def _transformer(connector: ConnectorConfig, e: int, h: int) -> Iterator[ConnectorLayer]:
    """Layers that normalise what they read, as the tower's own."""
    for number in range(connector.layers or 0):
        at = f"blocks.{number}"
        yield ConnectorLayer(f"{at}.norm1", (e,))
        yield from _attention(f"{at}.attention", e, e)
        yield ConnectorLayer(f"{at}.norm2", (e,))
        yield from _feed_forward(at, e)
    yield ConnectorLayer("fc", (h, e), split="gathered")


def _qformer(connector: ConnectorConfig, e: int, h: int) -> Iterator[ConnectorLayer]:
    """Layers that normalise what they write, with BLIP-2's epsilon."""
    width, every = connector.width or 0, connector.cross_attention_every or 1

    def norm(name: str) -> ConnectorLayer:
        return ConnectorLayer(name, (width,), epsilon=1e-12)

    yield ConnectorLayer("queries", (connector.queries or 0, width), is_table=True)
    yield norm("norm")
    for number in range(connector.layers or 0):
        at = f"blocks.{number}"
        yield from _attention(f"{at}.attention", width, width)
        yield norm(f"{at}.attention.norm")
        if number % every == 0:
            yield from _attention(f"{at}.cross", width, e, reads_patches=True)
            yield norm(f"{at}.cross.norm")
        yield from _feed_forward(at, width)
        yield norm(f"{at}.norm")
    yield ConnectorLayer("fc", (h, width), split="gathered")


def _fitting_qformer(connector: ConnectorConfig, tower: Tower) -> dict[str, int]:
    """BLIP-2's behind a large tower, smaller behind a small one; heads 64 wide or wider."""
    width = connector.width or min(_BERT_WIDTH, tower.width)
    heads = next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
    return {
        "layers": min(_BERT_LAYERS, tower.layers),
        "queries": min(32, tower.grid**2),
        "width": width,
        "heads": heads,
    }


def _attention(
    at: str, width: int, seen: int, *, reads_patches: bool = False
) -> Iterator[ConnectorLayer]:
    """Of ``width`` to what is ``seen`` wide."""
    yield ConnectorLayer(f"{at}.query", (width, width), split="outputs")
    for name in ("key", "value"):
        at_name, shape = f"{at}.{name}", (width, seen)
        yield ConnectorLayer(at_name, shape, reads_patches=reads_patches, split="outputs")
    yield ConnectorLayer(f"{at}.out", (width, width), split="inputs")


def _feed_forward(at: str, width: int) -> Iterator[ConnectorLayer]:
    yield ConnectorLayer(f"{at}.fc1", (4 * width, width), split="outputs")
    yield ConnectorLayer(f"{at}.fc2", (width, 4 * width), split="inputs")


CONNECTORS: Mapping[ConnectorKind, ConnectorFacts] = {
    facts.kind: facts
    for facts in (
        ConnectorFacts(kind="linear", layers=lambda _, e, h: _mlp(e, h)),
        ConnectorFacts(
            kind="mlpNx_gelu",
            layers=lambda connector, e, h: _mlp(e, *[h] * (connector.layers or 0)),
            options={"layers": 2},
        ),
        ConnectorFacts(
            kind="downsample_linear",
            layers=lambda _, e, h: _mlp(4 * e, h),
            kept=connector_memory.by_downsample_linear,
            block=2,
            module="downsample_linear",
        ),
        ConnectorFacts(
            kind="mlp_downsample",
            layers=lambda _, e, h: _mlp(4 * e, h, h, has_norms=True),
            kept=connector_memory.by_mlp_downsample,
            block=2,
            module="mlp_downsample",
        ),
        ConnectorFacts(
            kind="mlp_downsample_3x3_fix",
            layers=lambda _, e, h: _mlp(9 * e, 3 * e, h, h, has_norms=True),
            block=3,
        ),
        ConnectorFacts(
            kind="mlp_downsample_3x3_s2",
            layers=lambda _, e, h: _mlp(9 * e, 3 * e, e, e // 3, h, h, has_norms=True),
            block=3,
            least_width=6,
        ),
        ConnectorFacts(
            kind="mlp_downsample_3x3_s2_new",
            layers=lambda _, e, h: _mlp(9 * e, 4 * e, 2 * e, e, e // 3, h, h, has_norms=True),
            block=3,
            least_width=6,
        ),
        ConnectorFacts(
            kind="pooling",
            layers=lambda _, e, h: _mlp(e, h, h),
            num_tokens=lambda connector, _: (connector.side or 0) ** 2,
            options={"pooling": "average", "side": None},
            fitting=lambda _, tower: {"side": -(-tower.grid // 2)},
            module="pooling",
        ),
        ConnectorFacts(
            kind="transformer",
            layers=_transformer,
            kept=connector_memory.by_transformer,
            options={"layers": 1, "heads": None},
            fitting=lambda _, tower: {"heads": tower.heads},
            module="transformer",
        ),
        ConnectorFacts(
            kind="qformer",
            layers=_qformer,
            kept=connector_memory.by_qformer,
            num_tokens=lambda connector, _: connector.queries or 0,
            options={
                "layers": None,
                "queries": None,
                "width": None,
                "heads": None,
                "cross_attention_every": 2,
            },
            fitting=_fitting_qformer,
            module="qformer",
        ),
    )
}
OPTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(name for facts in CONNECTORS.values() for name in facts.options)
)
"""Options of some kinds."""

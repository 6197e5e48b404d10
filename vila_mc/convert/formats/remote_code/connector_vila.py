"""Connectors of a VILA: from patch features [n, p, e] to visual tokens [n, q, h].

Shape letters: h language width, n images, p = g * g patches, e tower width, q visual tokens per
image, w width of a connector's own.
"""

# mypy: no-warn-return-any

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MLPS: dict[str, tuple[int, Callable[[int, int], list[int]]]] = {
    "linear": (1, lambda e, h: [e, h]),
    "downsample_linear": (2, lambda e, h: [4 * e, h]),
    "mlp_downsample": (2, lambda e, h: [4 * e, h, h]),
    "mlp_downsample_3x3_fix": (3, lambda e, h: [9 * e, 3 * e, h, h]),
    "mlp_downsample_3x3_s2": (3, lambda e, h: [9 * e, 3 * e, e, e // 3, h, h]),
    "mlp_downsample_3x3_s2_new": (3, lambda e, h: [9 * e, 4 * e, 2 * e, e, e // 3, h, h]),
    "pooling": (1, lambda e, h: [e, h, h]),
}
"""Side of the block that becomes one token, and the widths between linear layers."""


def build_connector(
    kind: str, options: dict[str, Any], tower_width: int, language_width: int
) -> nn.Module:
    """The connector of this kind, with options by name.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "transformer":
        return VilaTransformer(tower_width, language_width, **options)
    if kind == "qformer":
        return VilaQFormer(tower_width, language_width, **options)
    if kind == "mlpNx_gelu":
        widths = [tower_width] + [language_width] * options["layers"]
        return VilaMlp(kind, options, 1, widths)
    if kind in _MLPS:
        block, widths_of = _MLPS[kind]
        return VilaMlp(kind, options, block, widths_of(tower_width, language_width))
    known = ", ".join((*_MLPS, "mlpNx_gelu", "transformer", "qformer"))
    raise ValueError(f"connector_kind is {kind!r}; it must be one of {known}.")


class VilaMlp(nn.Module):
    """Linear layers with GELU between.

    The kinds that begin with mlp_downsample have a LayerNorm before each but the last. Where a
    block is more than one patch, its patches become one token first; ``pooling`` pools them to
    ``side`` x ``side``. With ``token_order`` columns, tokens come out column by column, else row by
    row.
    """

    def __init__(self, kind: str, options: dict[str, Any], block: int, widths: list[int]) -> None:
        super().__init__()
        self.kind, self.options, self.block = kind, options, block
        last = len(widths) - 1
        self.steps: list[str] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            if kind.startswith("mlp_downsample") and number < last:
                norm = "norm" if last == 2 else f"norm{number}"
                self._add(norm, nn.LayerNorm(inputs, eps=1e-5))
            self._add(f"fc{number}", nn.Linear(inputs, outputs))

    def _add(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self.steps.append(name)

    def forward(self, patches_npe: Tensor) -> Tensor:
        tokens = patches_npe
        if self.kind == "pooling":
            tokens = pool(patches_npe, self.options["pooling"], self.options["side"])
        elif self.block > 1:
            tokens = fold_blocks(patches_npe, self.block)
        for name in self.steps:
            tokens = self.get_submodule(name)(tokens)
            if name.startswith("fc") and name != self.steps[-1]:
                tokens = F.gelu(tokens)
        if self.options.get("token_order") == "columns":
            n, q, h = tokens.shape
            side = round(q**0.5)
            tokens = tokens.reshape(n, side, side, h).transpose(1, 2).flatten(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head attention; with ``norm``, added to the queries and normalised afterwards."""

    def __init__(self, width: int, seen_width: int, heads: int, norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(seen_width, width)
        self.value = nn.Linear(seen_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12) if norm else None

    def forward(self, queries_nqw: Tensor, seen: Tensor) -> Tensor:
        query, key, value = self.query(queries_nqw), self.key(seen), self.value(seen)
        context = F.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value)
        )
        added = self.out(context.transpose(1, 2).flatten(2))
        return added if self.norm is None else self.norm(queries_nqw + added)

    def _by_head(self, states: Tensor) -> Tensor:
        n, s, w = states.shape
        return states.reshape(n, s, self.heads, w // self.heads).transpose(1, 2)


class VilaTransformer(nn.Module):
    """Layers that add what attention and a feed-forward layer make of their normalised input."""

    def __init__(self, tower_width: int, language_width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(tower_width, heads) for _ in range(layers))
        self.fc = nn.Linear(tower_width, language_width)

    def forward(self, patches_npe: Tensor) -> Tensor:
        tokens = patches_npe
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc(tokens)


class TransformerBlock(nn.Module):
    """One layer of ``VilaTransformer``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed)
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class VilaQFormer(nn.Module):
    """Learned queries, which become the visual tokens, as in BLIP-2 (arXiv 2301.12597)."""

    def __init__(
        self,
        tower_width: int,
        language_width: int,
        layers: int,
        queries: int,
        width: int,
        heads: int,
        cross_attention_every: int,
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(
            QFormerBlock(width, tower_width if number % cross_attention_every == 0 else 0, heads)
            for number in range(layers)
        )
        self.fc = nn.Linear(width, language_width)

    def forward(self, patches_npe: Tensor) -> Tensor:
        rows = torch.arange(self.queries.num_embeddings, device=patches_npe.device)
        # Looked up, not read off the layer: weights may come from disk when a layer is called.
        tokens = self.norm(self.queries(rows)).expand(len(patches_npe), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, patches_npe)
        return self.fc(tokens)


class QFormerBlock(nn.Module):
    """One layer of ``VilaQFormer``; it looks at patches that are 0 wide not at all."""

    def __init__(self, width: int, seen_width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads, norm=True)
        self.cross = Attention(width, seen_width, heads, norm=True) if seen_width else None
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor, patches_npe: Tensor) -> Tensor:
        tokens = self.attention(tokens, tokens)
        if self.cross is not None:
            tokens = self.cross(tokens, patches_npe)
        return self.norm(tokens + self.fc2(F.gelu(self.fc1(tokens))))


def fold_blocks(patches_npe: Tensor, block: int) -> Tensor:
    """Fold each ``block x block`` patches into one token.

    A grid that ``block`` does not divide gets zeros at the bottom and right.

    Args:
        patches_npe: [n, p, e], patches in row-major order.
        block: side of a block.

    Returns:
        [n, ceil(g / block)**2, block**2 * e], row-major; channels ordered (dy, dx, e).
    """
    n, p, e = patches_npe.shape
    grid = round(p**0.5)
    side = -(-grid // block)
    gap = side * block - grid
    padded = F.pad(patches_npe.reshape(n, grid, grid, e), (0, 0, 0, gap, 0, gap))
    blocks = padded.reshape(n, side, block, side, block, e)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, side * side, block * block * e)


def pool(patches_npe: Tensor, pooling: str, side: int) -> Tensor:
    """Pool patches [n, p, e] to [n, side**2, e]: pooling is average or bilinear."""
    n, p, e = patches_npe.shape
    grid = round(p**0.5)
    image = patches_npe.transpose(1, 2).reshape(n, e, grid, grid)
    if pooling == "average":
        image = F.adaptive_avg_pool2d(image, side)
    else:
        image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2)

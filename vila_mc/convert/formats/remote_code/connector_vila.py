"""Connectors of a VILA: from patch features to visual tokens.

Shape letters: h language width, n images, p = g * g patches, e tower width, q visual tokens per
image, c channels of a block of patches.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

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


class VilaConnector(nn.Module):
    """Patch features [n, p, e] -> visual tokens [n, q, h].

    Linear layers with GELU between; the kinds that begin with mlp_downsample have a LayerNorm
    before each but the last. Those with ``downsample`` in their name first fold 2 x 2 or 3 x 3
    patches into one token, ``pooling`` pools them to ``side`` x ``side``. With ``token_order``
    columns, tokens come out column by column, else row by row.
    """

    def __init__(
        self, kind: str, options: dict[str, Any], tower_width: int, language_width: int
    ) -> None:
        super().__init__()
        self.kind, self.options = kind, options
        self.block, widths = _shape_of(kind, options, tower_width, language_width)
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


def _shape_of(kind: str, options: dict[str, Any], e: int, h: int) -> tuple[int, list[int]]:
    if kind == "mlpNx_gelu":
        return 1, [e] + [h] * options["layers"]
    if kind not in _MLPS:
        known = ", ".join((*_MLPS, "mlpNx_gelu"))
        raise ValueError(f"connector_kind is {kind!r}; it must be one of {known}.")
    block, widths = _MLPS[kind]
    return block, widths(e, h)


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

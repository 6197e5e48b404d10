"""Cases of every connector, and what each computes, as formulas in plain torch.

A new kind has a case of its name here; every test of connectors goes over these.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vila_mc.config.connectors import ConnectorConfig

CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlpNx_gelu": {},
    "mlp1x_gelu": dict(kind="mlpNx_gelu", layers=1),
    "mlp2x_gelu": {},
    "mlp3x_gelu": dict(kind="mlpNx_gelu", layers=3),
    "downsample_linear": {},
    "mlp_downsample": {},
    "mlp_downsample by columns": dict(kind="mlp_downsample", token_order="columns"),
    "mlp_downsample_3x3_fix": {},
    "mlp_downsample_3x3_s2": {},
    "mlp_downsample_3x3_s2_new": {},
    "mlp_downsample_3x3_s2_new by columns": dict(
        kind="mlp_downsample_3x3_s2_new", token_order="columns"
    ),
    "pooling": dict(side=2),
    "pooling bilinear": dict(kind="pooling", pooling="bilinear", side=2),
}
"""Options by name, which is the kind where none is given."""

STEPS = {
    "linear": "fc1",
    "mlpNx_gelu": "fc1 gelu fc2 gelu fc3",
    "downsample_linear": "fc1",
    "mlp_downsample": "norm fc1 gelu fc2",
    "mlp_downsample_3x3_fix": "norm1 fc1 gelu norm2 fc2 gelu fc3",
    "mlp_downsample_3x3_s2": "norm1 fc1 gelu norm2 fc2 gelu norm3 fc3 gelu norm4 fc4 gelu fc5",
    "mlp_downsample_3x3_s2_new": (
        "norm1 fc1 gelu norm2 fc2 gelu norm3 fc3 gelu norm4 fc4 gelu norm5 fc5 gelu fc6"
    ),
    "pooling": "fc1 gelu fc2",
}


def connector_of(name: str) -> ConnectorConfig:
    """The connector of a case."""
    return ConnectorConfig(**{"kind": name, **CASES[name]})


def options_of(name: str) -> dict[str, Any]:
    """``model.connector`` of a case, as a recipe has it."""
    return {"kind": name, **CASES[name]}


def plain(connector: ConnectorConfig, weights: Mapping[str, Tensor], patches: Tensor) -> Tensor:
    """Patches [n, p, e] -> visual tokens [n, q, h], with weights by their names."""
    tokens, kind = patches, connector.kind
    if "downsample" in kind:
        tokens = _concatenated(patches, 3 if "3x3" in kind else 2)
    if kind == "pooling":
        tokens = _pooled(patches, connector)
    tokens = _through(STEPS[kind].split(), connector, weights, tokens)
    if connector.token_order == "columns":
        side = round(tokens.shape[1] ** 0.5)
        order = [row * side + column for column in range(side) for row in range(side)]
        tokens = tokens[:, order]
    return tokens


def _through(
    steps: list[str], connector: ConnectorConfig, weights: Mapping[str, Tensor], tokens: Tensor
) -> Tensor:
    if connector.kind == "mlpNx_gelu":
        steps = steps[: 2 * (connector.layers or 0) - 1]
    for step in steps:
        if step == "gelu":
            tokens = tokens * 0.5 * (1 + torch.erf(tokens / 2**0.5))
            continue
        weight, bias = weights[f"{step}.weight"], weights[f"{step}.bias"]
        tokens = _normed(tokens, weight, bias) if "norm" in step else tokens @ weight.T + bias
    return tokens


def _normed(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _concatenated(patches: Tensor, factor: int) -> Tensor:
    """Channel ch of patch (row, col) becomes channel (factor * (row % factor) + col % factor) * e
    + ch of token (row // factor, col // factor)."""
    images, count, width = patches.shape
    grid = round(count**0.5)
    side = -(-grid // factor)
    tokens = torch.zeros(images, side * side, factor**2 * width)
    for row in range(grid):
        for col in range(grid):
            part = factor * (row % factor) + col % factor
            token = (row // factor) * side + col // factor
            tokens[:, token, part * width : (part + 1) * width] = patches[:, row * grid + col]
    return tokens


def _pooled(patches: Tensor, connector: ConnectorConfig) -> Tensor:
    images, count, width = patches.shape
    grid, side = round(count**0.5), connector.side
    assert side is not None
    square = patches.transpose(1, 2).reshape(images, width, grid, grid)
    if connector.pooling == "average":
        pooled = torch.nn.functional.adaptive_avg_pool2d(square, side)
    else:
        pooled = torch.nn.functional.interpolate(square, (side, side), mode="bilinear")
    return pooled.flatten(2).transpose(1, 2)

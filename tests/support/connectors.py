"""Cases of every connector, and what each computes, as formulas in plain torch.

A new kind has a case of its name here; every test of connectors goes over these.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

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
    "transformer": dict(layers=2, heads=4),
    "qformer": dict(queries=4, width=24, heads=4, layers=3, cross_attention_every=2),
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
    if kind in ("transformer", "qformer"):
        through = _transformer if kind == "transformer" else _qformer
        return through(connector, weights, patches) @ weights["fc.weight"].T + weights["fc.bias"]
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


def _transformer(
    connector: ConnectorConfig, weights: Mapping[str, Tensor], patches: Tensor
) -> Tensor:
    """torch's own layers."""
    width, heads = patches.shape[-1], connector.heads or 0
    layer = torch.nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    names = {"norm1": "norm1", "norm2": "norm2", "linear1": "fc1", "linear2": "fc2"}
    names["self_attn.out_proj"] = "attention.out"
    for number in range(connector.layers or 0):
        own = _renamed(weights, {their: f"blocks.{number}.{our}" for their, our in names.items()})
        for part in ("weight", "bias"):
            own[f"self_attn.in_proj_{part}"] = torch.cat(
                [weights[f"blocks.{number}.attention.{each}.{part}"] for each in _ASKED]
            )
        assert own.keys() == layer.state_dict().keys()
        patches = functional_call(layer, own, (patches,))
    return patches


def _qformer(connector: ConnectorConfig, weights: Mapping[str, Tensor], patches: Tensor) -> Tensor:
    """The Q-Former of BLIP-2, as transformers has it."""
    model = blip2_qformer(connector, patches.shape[-1])
    names = {"layernorm": "norm"}
    for number in range(connector.layers or 0):
        their, our = f"encoder.layer.{number}", f"blocks.{number}"
        names |= {f"{their}.intermediate_query.dense": f"{our}.fc1"}
        names |= {f"{their}.output_query.dense": f"{our}.fc2"}
        names |= {f"{their}.output_query.LayerNorm": f"{our}.norm"}
        for theirs, ours in (("attention", "attention"), ("crossattention", "cross")):
            if f"{our}.{ours}.out.weight" in weights:
                names |= {f"{their}.{theirs}.attention.{x}": f"{our}.{ours}.{x}" for x in _ASKED}
                names |= {f"{their}.{theirs}.output.dense": f"{our}.{ours}.out"}
                names |= {f"{their}.{theirs}.output.LayerNorm": f"{our}.{ours}.norm"}
    own = _renamed(weights, names)
    assert own.keys() == model.state_dict().keys()
    queries = weights["queries.weight"].expand(len(patches), -1, -1)
    inputs = {"query_embeds": queries, "encoder_hidden_states": patches}
    tokens: Tensor = functional_call(model, own, (), inputs).last_hidden_state
    return tokens


_ASKED = ("query", "key", "value")


def blip2_qformer(connector: ConnectorConfig, seen_width: int) -> Any:
    """transformers' class, without dropout, with random weights."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel  # slow to import

    width = connector.width or 0
    return Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=width,
            num_hidden_layers=connector.layers,
            num_attention_heads=connector.heads,
            intermediate_size=4 * width,
            cross_attention_frequency=connector.cross_attention_every,
            encoder_hidden_size=seen_width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{theirs}.{part}": weights[f"{ours}.{part}"]
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    }

"""What every connector has, and how one is found."""

from importlib import import_module

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from vila_mc.config.connectors import TABLE_STD, ConnectorLayer
from vila_mc.config.model import ModelConfig


class Connector(MegatronModule):  # type: ignore[misc]
    """Patch features to visual tokens in the language model's width.

    Every tensor-parallel rank holds all of it. Its layers are those of ``config.connectors``.

    Args:
        config: of the language model.
        model: the whole model's shape.
        is_narrow: weights start as wide as their inputs ask for (arXiv 1502.01852), about 2.4 times
            as wide as torch has it, which VILA and LLaVA keep.
    """

    def __init__(
        self, config: TransformerConfig, model: ModelConfig, *, is_narrow: bool = False
    ) -> None:
        super().__init__(config=config)
        self.settings = model.connector
        self.block = model.connector.facts().block
        self.class_tokens = model.vision.facts().class_tokens
        self.layers = model.connector_layers()
        for layer in self.layers:
            _put(self, layer.name, _built(layer, config.params_dtype, is_narrow=is_narrow))

    def forward(self, features_npe: Tensor) -> Tensor:
        """The tower's features [n, class tokens + p, e] -> visual tokens [n, q, h]."""
        visual_nqh = self.tokens_by_rows(features_npe)
        if self.settings.token_order != "columns":
            return visual_nqh
        n, q, h = visual_nqh.shape
        side = round(q**0.5)
        return visual_nqh.reshape(n, side, side, h).transpose(1, 2).flatten(1, 2)

    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        """``forward`` with the visual tokens row by row, which is what a kind computes."""
        raise NotImplementedError

    def patches(self, features_npe: Tensor) -> Tensor:
        """Features without class tokens: [n, p, e]."""
        return features_npe[:, self.class_tokens :]

    def apply_linear(self, name: str, inputs: Tensor) -> Tensor:
        """The linear layer ``name``: [..., inputs] -> [..., outputs]."""
        outputs: Tensor = self.get_submodule(name)(inputs)
        return outputs

    def apply_norm(self, name: str, inputs: Tensor) -> Tensor:
        """The LayerNorm ``name``, over the last axis."""
        outputs: Tensor = self.get_submodule(name)(inputs)
        return outputs

    def mlp(self, tokens: Tensor) -> Tensor:
        """All of its layers one after the other, with GELU (exact) between linear ones."""
        last = self.layers[-1]
        for layer in self.layers:
            if layer.is_norm:
                tokens = self.apply_norm(layer.name, tokens)
            else:
                tokens = self.apply_linear(layer.name, tokens)
                tokens = tokens if layer == last else F.gelu(tokens)
        return tokens

    def attend(self, at: str, queries_nqw: Tensor, seen_npw: Tensor) -> Tensor:
        """Attention of ``queries`` to what is ``seen``, by the layers below ``at``: [n, q, w]."""
        assert self.settings.heads is not None
        width = queries_nqw.shape[-1] // self.settings.heads
        query, key, value = (
            self._by_head(self.apply_linear(f"{at}.{name}", inputs), width)
            for name, inputs in (("query", queries_nqw), ("key", seen_npw), ("value", seen_npw))
        )
        context_naqd = F.scaled_dot_product_attention(query, key, value)
        return self.apply_linear(f"{at}.out", context_naqd.transpose(1, 2).flatten(2))

    def feed_forward(self, at: str, tokens: Tensor) -> Tensor:
        """Two layers below ``at`` with GELU between: [n, q, w]."""
        return self.apply_linear(f"{at}.fc2", F.gelu(self.apply_linear(f"{at}.fc1", tokens)))

    @staticmethod
    def _by_head(states_nsw: Tensor, width: int) -> Tensor:
        """[n, s, w] -> [n, heads, s, width]."""
        n, s, w = states_nsw.shape
        return states_nsw.reshape(n, s, w // width, width).transpose(1, 2)


def build_connector(
    config: TransformerConfig, model: ModelConfig, *, is_narrow: bool = False
) -> Connector:
    """The connector of ``model.connector``; see ``Connector``."""
    module = import_module(f"vila_mc.model.connectors.{model.connector.facts().module}")
    kind: type[Connector] = module.CONNECTOR
    return kind(config, model, is_narrow=is_narrow)


def _built(layer: ConnectorLayer, dtype: torch.dtype, *, is_narrow: bool) -> nn.Module:
    if layer.is_norm:
        return nn.LayerNorm(layer.shape, eps=layer.epsilon, dtype=dtype)
    if layer.is_table:
        table = nn.Embedding(layer.shape[0], layer.shape[1], dtype=dtype)
        nn.init.normal_(table.weight, std=TABLE_STD)
        return table
    outputs, inputs = layer.shape
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    if is_narrow:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return linear


def _put(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Make ``layer`` the submodule of this dotted name."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(parent, step):
            parent.add_module(step, nn.Module())
        parent = parent.get_submodule(step)
    parent.add_module(last, layer)

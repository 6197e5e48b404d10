"""What every connector has, and how one is found."""

from importlib import import_module
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vila_mc.config.connectors import TABLE_STD, ConnectorLayer
from vila_mc.config.model import ModelConfig


class Connector(MegatronModule):  # type: ignore[misc]
    """Patch features to visual tokens in the language model's width.

    Its layers are those of ``config.connectors``. Features and visual tokens are the same on every
    tensor-parallel rank, and so are weights that ranks do not share.

    Args:
        config: of the language model.
        model: the whole model's shape.
        is_narrow: weights start as wide as their inputs ask for (arXiv 1502.01852), about 2.4 times
            as wide as torch has it, which VILA and LLaVA keep.
        shared_by: the tensor-parallel ranks that share its matrices; None if each holds all.
    """

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        *,
        is_narrow: bool = False,
        shared_by: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(config=config)
        self.settings = model.connector
        self.block = model.connector.facts().block
        self.class_tokens = model.vision.facts().class_tokens
        self.layers = model.connector_layers()
        self.shared_by = shared_by
        for layer in self.layers:
            built = _built(layer, config.params_dtype, is_narrow=is_narrow)
            if shared_by is not None:
                _keep_shard(built, layer, shared_by)
            _put(self, layer.name, built)

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
        """The linear layer ``name``: [..., inputs] -> [..., outputs], shared as the layer says."""
        layer, split = self.get_submodule(name), self._layer(name).split
        if self.shared_by is None or split == "whole":
            return layer(inputs)  # type: ignore[no-any-return]
        if split == "inputs":
            assert isinstance(layer, nn.Linear)
            return self.summed(F.linear(inputs, layer.weight)) + layer.bias
        outputs = layer(self.to_all(inputs))
        return self.gathered(outputs) if split == "gathered" else outputs

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
        queries = self.to_all(queries_nqw)
        seen = queries if seen_npw is queries_nqw else self.to_all(seen_npw)
        query, key, value = (
            self._by_head(self.get_submodule(f"{at}.{name}")(inputs), width)
            for name, inputs in (("query", queries), ("key", seen), ("value", seen))
        )
        context_naqd = F.scaled_dot_product_attention(query, key, value)
        return self.apply_linear(f"{at}.out", context_naqd.transpose(1, 2).flatten(2))

    def feed_forward(self, at: str, tokens: Tensor) -> Tensor:
        """Two layers below ``at`` with GELU between: [n, q, w]."""
        return self.apply_linear(f"{at}.fc2", F.gelu(self.apply_linear(f"{at}.fc1", tokens)))

    def to_all(self, tensor: Tensor) -> Tensor:
        """The same on every rank that shares; its gradient is the sum of theirs."""
        if self.shared_by is None:
            return tensor
        copied: Tensor = tensor_parallel.copy_to_tensor_model_parallel_region(
            tensor, group=self.shared_by
        )
        return copied

    def summed(self, part: Tensor) -> Tensor:
        """The sum of what the ranks that share have."""
        if self.shared_by is None:
            return part
        total: Tensor = tensor_parallel.reduce_from_tensor_model_parallel_region(
            part, group=self.shared_by
        )
        return total

    def gathered(self, part: Tensor) -> Tensor:
        """The last axes of what the ranks that share have, one after the other."""
        if self.shared_by is None:
            return part
        whole: Tensor = tensor_parallel.gather_from_tensor_model_parallel_region(
            part, group=self.shared_by
        )
        return whole

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """For Megatron-Core's checkpoints: which axis of a weight ranks share."""
        if self.shared_by is None:
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)
        axes = {
            f"{layer.name}.{part}": axis
            for layer in self.layers
            for part in layer.parameters()
            if (axis := layer.split_axis(part)) is not None
        }
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            axes,
            sharded_offsets,
            tp_group=self.shared_by,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )

    def _layer(self, name: str) -> ConnectorLayer:
        return next(layer for layer in self.layers if layer.name == name)

    @staticmethod
    def _by_head(states_nsw: Tensor, width: int) -> Tensor:
        """[n, s, w] -> [n, heads, s, width]; w is this rank's share of heads."""
        n, s, w = states_nsw.shape
        return states_nsw.reshape(n, s, w // width, width).transpose(1, 2)


def build_connector(
    config: TransformerConfig,
    model: ModelConfig,
    *,
    is_narrow: bool = False,
    shared_by: torch.distributed.ProcessGroup | None = None,
) -> Connector:
    """The connector of ``model.connector``; see ``Connector``."""
    module = import_module(f"vila_mc.model.connectors.{model.connector.facts().module}")
    kind: type[Connector] = module.CONNECTOR
    return kind(config, model, is_narrow=is_narrow, shared_by=shared_by)


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


def _keep_shard(
    built: nn.Module, layer: ConnectorLayer, group: torch.distributed.ProcessGroup
) -> None:
    """Leave of what ranks share this one's part. Cut from the whole, whose first weights do not
    depend on how many share it."""
    for part, whole in list(built.named_parameters()):
        axis = layer.split_axis(part)
        if axis is None:
            continue
        shard = whole.detach().chunk(group.size(), axis)[group.rank()].clone()
        weight = nn.Parameter(shard)
        tensor_parallel.set_tensor_model_parallel_attributes(weight, True, axis, 1)
        built.register_parameter(part, weight)


def _put(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Make ``layer`` the submodule of this dotted name."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(parent, step):
            parent.add_module(step, nn.Module())
        parent = parent.get_submodule(step)
    parent.add_module(last, layer)

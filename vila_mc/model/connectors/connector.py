"""What every connector has, and how one is found."""

from importlib import import_module

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from vila_mc.config.model import ModelConfig

NORM_EPSILON = 1e-5


class Connector(MegatronModule):  # type: ignore[misc]
    """Patch features to visual tokens in the language model's width, by ``forward``.

    Every tensor-parallel rank holds all of it. Its layers are those of ``config.connectors``.

    Args:
        config: of the language model.
        model: the whole model's shape.
        is_narrow: weights start as wide as their inputs ask for (arXiv 1502.01852), about 2.4 times
            as wide as torch has it, which VILA and LLaVA keep.
    """

    norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(
        self, config: TransformerConfig, model: ModelConfig, *, is_narrow: bool = False
    ) -> None:
        super().__init__(config=config)
        self.factor = model.connector.factor()
        self.class_tokens = model.vision.facts().class_tokens
        for name, shape in model.connector_shapes().items():
            layer = _layer(shape, config.params_dtype)
            if is_narrow and isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.add_module(name, layer)

    def forward(self, features_npe: Tensor) -> Tensor:
        """The tower's features [n, class tokens + p, e] -> visual tokens [n, q, h]."""
        raise NotImplementedError

    def patches(self, features_npe: Tensor) -> Tensor:
        """Features without class tokens: [n, p, e]."""
        return features_npe[:, self.class_tokens :]


def build_connector(
    config: TransformerConfig, model: ModelConfig, *, is_narrow: bool = False
) -> Connector:
    """The connector of ``model.connector.kind``; see ``Connector``."""
    module = import_module(f"vila_mc.model.connectors.{model.connector.kind}")
    kind: type[Connector] = module.CONNECTOR
    return kind(config, model, is_narrow=is_narrow)


def _layer(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    if len(shape) == 1:
        return nn.LayerNorm(shape, eps=NORM_EPSILON, dtype=dtype)
    width, channels = shape
    return nn.Linear(channels, width, dtype=dtype)

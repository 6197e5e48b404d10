"""From patch features to visual tokens in the language model's width."""

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.model import ModelConfig
from vila_mc.kernels.ops import downsample_linear, mlp_downsample


class Connector(MegatronModule):  # type: ignore[misc]
    """The projector of VILA in four kinds; every tensor-parallel rank holds all of it.

    linear:             e -> h
    mlp2x_gelu:         e -> h, GELU, h -> h
    downsample_linear:  2x2 block -> 4e -> h
    mlp_downsample:     2x2 block -> LayerNorm(4e) -> h, GELU, h -> h

    The downsampling kinds keep the patch features for the backward pass and little else.

    Source:
        VILA, arXiv 2312.07533, section 3 and Table 7; NVlabs/VILA for the MLPs. GELU is the exact
        erf form and the LayerNorm has epsilon 1e-5.
    """

    def __init__(self, config: TransformerConfig, model: ModelConfig) -> None:
        super().__init__(config=config)
        kind, self.factor = model.connector.kind, model.connector.factor()
        self.class_tokens = model.vision.facts().class_tokens
        channels = model.vision.width * self.factor**2
        width, dtype = model.language.width, config.params_dtype
        self.norm = (
            torch.nn.LayerNorm(channels, eps=1e-5, dtype=dtype)
            if kind == "mlp_downsample"
            else None
        )
        self.fc1 = torch.nn.Linear(channels, width, dtype=dtype)
        has_second_layer = kind in ("mlp2x_gelu", "mlp_downsample")
        self.fc2 = torch.nn.Linear(width, width, dtype=dtype) if has_second_layer else None

    def forward(self, features_npe: Tensor) -> Tensor:
        """The tower's features [n, class tokens + p, e] -> visual tokens [n, q, h]."""
        norm, fc1, fc2, has_cls = self.norm, self.fc1, self.fc2, self.class_tokens > 0
        if norm is not None and fc2 is not None:
            weights = norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias
            return mlp_downsample(
                features_npe, *weights, self.factor, has_cls=has_cls, eps=norm.eps
            )
        if self.factor > 1:
            return downsample_linear(
                features_npe, fc1.weight, fc1.bias, self.factor, has_cls=has_cls
            )
        visual: Tensor = fc1(features_npe[:, self.class_tokens :])
        return visual if fc2 is None else fc2(F.gelu(visual))  # type: ignore[no-any-return]

"""From patch features to visual tokens in the language model's width."""

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.model import ModelConfig
from vila_mc.kernels.ops import downsample_gather


class Connector(MegatronModule):  # type: ignore[misc]
    """The projector of VILA in four kinds; every tensor-parallel rank holds all of it.

    linear:             e -> h
    mlp2x_gelu:         e -> h, GELU, h -> h
    downsample_linear:  2x2 concat -> 4e -> h
    mlp_downsample:     2x2 concat -> LayerNorm(4e) -> h, GELU, h -> h

    Source:
        VILA, arXiv 2312.07533, section 3 and Table 7; NVlabs/VILA for the MLPs. GELU is the exact
        erf form and the LayerNorm has epsilon 1e-5.
    """

    def __init__(self, config: TransformerConfig, model: ModelConfig) -> None:
        super().__init__(config=config)
        kind, self.factor = model.connector.kind, model.connector.factor()
        merged_width = model.vision.width * self.factor**2
        width, dtype = model.language.width, config.params_dtype
        self.norm = (
            torch.nn.LayerNorm(merged_width, eps=1e-5, dtype=dtype)
            if kind == "mlp_downsample"
            else None
        )
        self.fc1 = torch.nn.Linear(merged_width, width, dtype=dtype)
        has_second_layer = kind in ("mlp2x_gelu", "mlp_downsample")
        self.fc2 = torch.nn.Linear(width, width, dtype=dtype) if has_second_layer else None

    def forward(self, patches_npe: Tensor) -> Tensor:
        """[n, p, e] patch features without the class token -> [n, q, h] visual tokens."""
        tokens = downsample_gather(patches_npe, self.factor) if self.factor > 1 else patches_npe
        if self.norm is not None:
            tokens = self.norm(tokens)
        visual: Tensor = self.fc1(tokens)
        if self.fc2 is not None:
            visual = self.fc2(F.gelu(visual))
        return visual

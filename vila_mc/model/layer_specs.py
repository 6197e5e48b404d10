"""The only place that picks the modules a transformer layer is made of."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from vila_mc.model.attention import TorchAttention


class TorchNorm:
    """Builds torch's RMSNorm or LayerNorm, as ``config.normalization`` says.

    Megatron-Core 0.19.2's WrappedTorchNorm refuses sequence parallelism. All that it takes is the
    mark below, by which Megatron sums the gradients of a norm over tensor-parallel ranks.
    """

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> torch.nn.Module:
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


def language_block_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Layers and final norm of the language model's part on one stage."""
    layer = _with_torch_modules(
        get_gpt_layer_local_spec(normalization=config.normalization),
        has_qk_norm=config.qk_layernorm,
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TorchNorm)


def vision_layer_spec() -> ModuleSpec:
    """One layer of the vision tower; every patch attends to every patch."""
    return _with_torch_modules(get_vit_layer_with_local_spec())


def _with_torch_modules(layer: ModuleSpec, *, has_qk_norm: bool = False) -> ModuleSpec:
    layer.submodules.input_layernorm = TorchNorm
    layer.submodules.pre_mlp_layernorm = TorchNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = TorchAttention
    if has_qk_norm:
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    return layer

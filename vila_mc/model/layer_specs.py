"""The only place that picks the modules a transformer layer is made of."""

from typing import Any, Literal

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.vision.vit_layer_specs import (
    get_vit_layer_with_local_spec,
    get_vit_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from vila_mc.config.lora import LoraConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import LayerKind, ModelPart
from vila_mc.errors import SetupError
from vila_mc.model.attention import TorchAttention
from vila_mc.model.lora import with_adapters
from vila_mc.parallel.installed import has_transformer_engine


def layer_kind(config: RunConfig, part: Literal["vision", "language"]) -> LayerKind:
    """What the transformer layers of a part are made of on this machine.

    Raises:
        SetupError: Transformer Engine is asked for and is not here.
    """
    train = config.train
    choice = (train.vision_layers if part == "vision" else None) or train.layers
    is_here = has_transformer_engine()
    if choice == "auto" and train.fp8.concerns(part) and not is_here:
        raise SetupError(
            f"train.fp8.recipe is {train.fp8.recipe}, which needs Transformer Engine, and it is "
            "not installed here for this torch. Install it as docs/gpu.md says, or try the recipe "
            "on a CPU with train.fp8.emulation."
        )
    if choice == "auto":
        has_gpu = torch.cuda.is_available() or train.fp8.emulation
        return "transformer_engine" if is_here and has_gpu else "torch"
    if choice == "transformer_engine" and not is_here:
        name = "vision_layers" if part == "vision" and train.vision_layers else "layers"
        raise SetupError(
            f"train.{name} is transformer_engine, which is not installed here for this torch. "
            "Install it as docs/gpu.md says, or set it to auto or torch."
        )
    return choice


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


def layer_kinds(config: RunConfig) -> dict[ModelPart, LayerKind]:
    """What the transformer layers of each part are made of. Raises SetupError."""
    return {"vision": layer_kind(config, "vision"), "language": layer_kind(config, "language")}


def layers_line(config: RunConfig) -> str:
    """A few words about what the layers of each part are made of."""
    vision, language = layer_kinds(config).values()
    return f"layers {language}" if vision == language else f"layers {language}, vision {vision}"


def language_block_spec(
    config: TransformerConfig, num_layers: int, lora: LoraConfig
) -> TransformerBlockSubmodules:
    """Layers, with their adapters, and final norm of the language model's part on one stage."""
    if config.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        return _language_block(layer, num_layers, TENorm, lora)
    layer = _with_torch_norms(
        get_gpt_layer_local_spec(normalization=config.normalization),
        has_qk_norm=config.qk_layernorm,
    )
    return _language_block(layer, num_layers, TorchNorm, lora)


def vision_layer_spec(config: TransformerConfig, lora: LoraConfig) -> ModuleSpec:
    """One layer of the vision tower; every patch attends to every patch."""
    if config.transformer_impl == "transformer_engine":
        layer = get_vit_layer_with_transformer_engine_spec()
    else:
        layer = _with_torch_norms(get_vit_layer_with_local_spec())
    return with_adapters(_with_our_attention(layer), "vision", lora)


def _language_block(
    layer: ModuleSpec, num_layers: int, norm: type, lora: LoraConfig
) -> TransformerBlockSubmodules:
    layer = with_adapters(_with_our_attention(layer), "language", lora)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


def _with_our_attention(layer: ModuleSpec) -> ModuleSpec:
    """Between the projections of any kind: Transformer Engine's own attention would ignore where
    the samples of packed rows end, and let them see each other."""
    layer.submodules.self_attention.submodules.core_attention = TorchAttention
    return layer


def _with_torch_norms(layer: ModuleSpec, *, has_qk_norm: bool = False) -> ModuleSpec:
    layer.submodules.input_layernorm = TorchNorm
    layer.submodules.pre_mlp_layernorm = TorchNorm
    if has_qk_norm:
        attention = layer.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    return layer

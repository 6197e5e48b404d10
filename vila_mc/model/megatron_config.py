"""Our config in Megatron-Core's terms."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.families import Activation
from vila_mc.config.run import RunConfig
from vila_mc.model.fp8 import fp8_options
from vila_mc.model.fusions import fusion_options
from vila_mc.model.layer_specs import layer_kind
from vila_mc.topology.stage_plan import megatron_layout, plan_stages

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    """SigLIP's activation: GELU by the tanh formula."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
}


def initial_std(config: RunConfig, width: int) -> float:
    """Standard deviation of the fresh weights of a part of this width.

    Source:
        Nguyen and Salazar, arXiv 1910.05895: sqrt(2 / (5 h)).
    """
    given = config.train.init_std
    return math.sqrt(2 / (5 * width)) if given is None else given


def language_config(config: RunConfig) -> TransformerConfig:
    """The Llama-like decoder: RMSNorm, SwiGLU, grouped-query attention; biases as its family."""
    language, parallel = config.model.language, config.parallel
    is_virtual = parallel.virtual > 1
    return TransformerConfig(
        num_layers=language.layers,
        hidden_size=language.width,
        init_method_std=initial_std(config, language.width),
        ffn_hidden_size=language.ffn,
        num_attention_heads=language.heads,
        num_query_groups=language.kv_heads,
        kv_channels=language.resolved_head_width(),
        layernorm_epsilon=language.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=language.facts().qkv_bias,
        qk_layernorm=language.facts().qk_norm,
        sequence_parallel=parallel.sequence,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual if is_virtual else None,
        pipeline_model_parallel_layout=(
            megatron_layout(plan_stages(config.model, parallel)) if parallel.pipeline > 1 else None
        ),
        # With virtual stages, Megatron-Core 0.19.2's batched point-to-point calls deliver to the
        # wrong chunk on 2 pipeline ranks: wrong gradients and no error. Plain 1F1B refuses overlap.
        deallocate_pipeline_outputs=True,
        overlap_p2p_comm=is_virtual,
        batch_p2p_comm=not is_virtual,
        finalize_model_grads_func=finalize_model_grads,
        recompute_granularity="full" if config.train.recompute == "full" else None,
        recompute_method="uniform" if config.train.recompute == "full" else None,
        recompute_num_layers=1 if config.train.recompute == "full" else None,
        **_common(config, "language"),
    )


def vision_config(config: RunConfig) -> TransformerConfig:
    """The tower: LayerNorm, biases, its family's GELU. It is never split by stages or sequence."""
    vision = config.model.vision
    return TransformerConfig(
        num_layers=vision.built_layers(),
        hidden_size=vision.width,
        init_method_std=initial_std(config, vision.width),
        ffn_hidden_size=vision.ffn,
        num_attention_heads=vision.heads,
        layernorm_epsilon=vision.facts().norm_epsilon,
        normalization="LayerNorm",
        activation_func=ACTIVATIONS[vision.facts().activation],
        add_bias_linear=True,
        add_qkv_bias=True,
        **_common(config, "vision"),
    )


def _common(config: RunConfig, part: Literal["vision", "language"]) -> dict[str, object]:
    dtype = DTYPES[config.train.precision]
    is_local = layer_kind(config, part) == "torch"
    return {
        "transformer_impl": "local" if is_local else "transformer_engine",
        "tensor_model_parallel_size": config.parallel.tensor,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": config.train.precision == "bf16",
        "fp16": config.train.precision == "fp16",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # The loss is summed and counted over the whole global batch, then divided once. DDP reads
        # this when it is built.
        "calculate_per_token_loss": True,
        # Initial weights that do not depend on the tensor-parallel size.
        "use_cpu_initialization": True,
        **fusion_options(config, part),
        **fp8_options(config, part),
    }

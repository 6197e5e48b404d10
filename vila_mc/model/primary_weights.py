"""Weights that are kept in FP8 themselves, as Transformer Engine's primary weights.

The optimizer's fp32 masters are what such a weight is: after each step it is cast from them, and a
checkpoint is written from them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.fp8_utils import get_fp8_recipe, is_first_last_bf16_layer, is_float8tensor
from torch import Tensor, nn


def quantize_weights(part: nn.Module) -> None:
    """Turn the weights of a part's FP8 layers that learn into FP8 ones, from what they are now.

    Each remembers what it was, for the optimizer that is built next to make its masters of. What is
    frozen has no masters, without which a checkpoint would hold it rounded, and stays in bf16.
    Transformer Engine quantizes weights when a layer is made, on a GPU and before their initial
    values are there, if these are made on the CPU.

    Args:
        part: vision tower or language model, on its device.
    """
    config: Any = part.config
    for layer in part.decoder.layers:  # type: ignore[union-attr]
        if not is_first_last_bf16_layer(config, layer.layer_number - 1):  # type: ignore[operator]
            for module in layer.modules():
                if hasattr(module, "param_init_meta"):
                    _quantize(module, get_fp8_recipe(config))


def _quantize(module: Any, recipe: Any) -> None:
    """The weight of a module of Transformer Engine."""
    from transformer_engine.pytorch import quantized_model_init
    from transformer_engine.pytorch.module.base import _attach_high_precision_init_val

    for name, made in module.param_init_meta.items():
        weight = getattr(module, name)
        if made.fp8_meta_index is None or not weight.requires_grad:
            continue
        module.primary_weights_in_fp8 = True
        with quantized_model_init(enabled=True, recipe=recipe):
            module.init_fp8_metadata()
        quantizer = module.quantizers["scaling_fwd"][made.fp8_meta_index]
        quantizer.set_usage(rowwise=True, columnwise=True)
        quantizer.internal = False
        quantized = nn.Parameter(quantizer(weight.detach()))
        quantized.__dict__.update(weight.__dict__)  # how it is divided among ranks
        _attach_high_precision_init_val(quantized, weight.detach().cpu())
        module.module_setattr(name, quantized)


def is_primary(weight: Tensor) -> bool:
    """Whether a weight is kept in FP8."""
    return bool(is_float8tensor(weight))


def masters(stage: nn.Module) -> Iterator[Tensor]:
    """This rank's shares of the fp32 masters of weights in FP8, once an optimizer has made them."""
    for weight in stage.parameters():
        master: Tensor | None = getattr(weight, "main_param", None)
        if is_primary(weight) and master is not None:  # none where other ranks have all of it
            yield master


def in_high_precision(optimizer: Any) -> dict[int, Tensor]:
    """What weights in FP8 are, rounded from their masters to bf16, on the CPU.

    Every data-parallel rank must call this together, and gets all of them: any may be the one that
    writes a weight.

    Args:
        optimizer: Megatron-Core's, whose ranks have a share of the masters each.

    Returns:
        by ``id`` of the weight, in its shape.
    """
    found = {}
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        parameters = part._get_fp8_params_and_shard_fp32_from_fp8()
        for weight, master, start in zip(*parameters, strict=True):
            whole = _gathered(weight, master, start, part.data_parallel_group)
            found[id(weight)] = whole.view(weight.shape).cpu()
    return found


def _gathered(
    weight: Tensor, master: Tensor | None, start: int | None, group: dist.ProcessGroup
) -> Tensor:
    """[numel] in the weight's nominal format, from this rank's share ``master`` and the others'."""
    whole = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    if master is not None and start is not None:
        whole[start : start + master.numel()] = master
    if group.size() > 1:
        # As bytes, of which one rank has each and the others have 0: the sum is exact.
        dist.all_reduce(whole.view(torch.uint8), group=group)
    return whole

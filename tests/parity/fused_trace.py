"""What a rank does in the tests of fusions: train with them, without them, or with one alone."""

import sys
import types
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.tensor_parallel import layers

from tests.parity.layout_trace import TRAINABLES, Trace, trace
from vila_mc.config.run import RunConfig
from vila_mc.model import fusions, megatron_config

KERNEL = "fused_weight_gradient_mlp_cuda"
_options = fusions.fusion_options


def traces(
    seed: Path, parallel: dict[str, Any], fused: dict[str, bool], train: dict[str, Any]
) -> list[Trace]:
    """A trace of each entry of TRAINABLES, with those fusions changed that are named."""

    def options(config: RunConfig, part: Literal["vision", "language"]) -> dict[str, bool]:
        return {name: fused.get(name, is_on) for name, is_on in _options(config, part).items()}

    vars(megatron_config)["fusion_options"] = options
    return trace(seed, parallel, list(TRAINABLES.values()), train)


def traces_with_kernel(
    seed: Path, parallel: dict[str, Any], train: dict[str, Any]
) -> tuple[list[Trace], int]:
    """The same where NVIDIA Apex has its kernel for weight gradients, and how often it was used."""
    calls = 0

    def accumulate(inputs_rk: torch.Tensor, grads_rn: torch.Tensor, total_nk: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        total_nk.add_(grads_rn.t() @ inputs_rk)

    kernel = types.ModuleType(KERNEL)
    kernel.wgrad_gemm_accum_fp32 = accumulate  # type: ignore[attr-defined]
    sys.modules[KERNEL] = kernel
    layers.fused_weight_gradient_mlp_cuda = kernel
    layers._grad_accum_fusion_available = True
    return traces(seed, parallel, {}, train), calls


def kept_bytes(is_fused: bool) -> int:
    """Bytes that a SwiGLU of the language model keeps for its backward pass, its input aside."""
    from megatron.core.transformer.mlp import MLP

    from tests.support.tiny import tiny_run
    from vila_mc.model.build import build_stages
    from vila_mc.parallel.groups import distributed

    config = tiny_run()
    with distributed(config.parallel, seed=1) as ranks:
        (stage,) = build_stages(config, ranks)
        stage.config.bias_activation_fusion = is_fused
        (mlp, *_) = [each for each in stage.language.modules() if isinstance(each, MLP)]
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mlp(torch.randn(8, 1, config.model.language.width, requires_grad=True))
        weights = {each.untyped_storage().data_ptr() for each in mlp.parameters()}
        return sum(size for where, size in storages.items() if where not in weights)

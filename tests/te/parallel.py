"""A linear divided among tensor-parallel ranks. Imported under emulation alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformer_engine.pytorch as te
from torch import Tensor
from torch import distributed as dist
from transformer_engine.pytorch.constants import TE_DType
from transformer_engine.pytorch.quantization import FP8GlobalStateManager
from transformer_engine.pytorch.tensor import Float8CurrentScalingQuantizer

from tests.te.recipes import CASES

Floats = npt.NDArray[np.float32]
TOKENS, WIDTH, HIDDEN, STEPS = 128, 256, 512, 3


def _parts(tensor: Tensor, axis: int) -> Tensor:
    """This rank's share of an axis."""
    return tensor.chunk(dist.get_world_size(), axis)[dist.get_rank()].contiguous()


def two_linears(recipe: str) -> dict[str, Floats]:
    """Output, and gradients of input and weights, of a column- and a row-parallel linear in FP8.

    After some steps; put together from all ranks, in fp32.
    """
    dist.init_process_group("gloo")
    group = dist.group.WORLD
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    shared: dict[str, Any] = dict(
        bias=False, params_dtype=torch.bfloat16, tp_group=group, tp_size=dist.get_world_size()
    )
    is_split = shared["sequence_parallel"] = dist.get_world_size() > 1
    up = te.Linear(WIDTH, HIDDEN, parallel_mode="column", **shared)
    down = te.Linear(HIDDEN, WIDTH, parallel_mode="row", **shared)
    with torch.no_grad():
        up.weight.copy_(_parts(random(HIDDEN, WIDTH) / 16, 0))
        down.weight.copy_(_parts(random(WIDTH, HIDDEN) / 16, 1))
    scaling = CASES[recipe].recipe()
    FP8GlobalStateManager.reset()
    for _ in range(STEPS):
        x, grad = random(TOKENS, WIDTH), random(TOKENS, WIDTH)
        if is_split:
            x, grad = _parts(x, 0), _parts(grad, 0)
        x = x.requires_grad_()
        up.zero_grad()
        down.zero_grad()
        with te.fp8_autocast(enabled=True, fp8_recipe=scaling, fp8_group=group):
            y = down(up(x))
        y.backward(grad)
    return {
        "output": _whole(y, 0),
        "input": _whole(x.grad, 0),
        "up": _whole(up.weight.grad, 0),
        "down": _whole(down.weight.grad, 1),
    }


def _whole(part: Tensor | None, axis: int) -> Floats:
    assert part is not None, "there is a gradient"
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts, axis).float().numpy()


def reduced_scale() -> tuple[float, float]:
    """Inverse scale of this rank's part with amaxes reduced, and that of the whole tensor."""
    dist.init_process_group("gloo")
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(6))
    kind, device = TE_DType[torch.float8_e4m3fn], torch.device("cpu")
    quantizer = Float8CurrentScalingQuantizer(
        kind, device=device, with_amax_reduction=True, amax_reduction_group=dist.group.WORLD
    )
    whole = Float8CurrentScalingQuantizer(kind, device=device)(values)
    return float(quantizer(_parts(values, 0))._scale_inv), float(whole._scale_inv)

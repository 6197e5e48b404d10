"""Attention on a GPU, packed rows among it, against the same on a CPU in fp64. Needs a GPU."""

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from tests.support.tiny import tiny_run
from vila_mc.model.attention import PackedRows, TorchAttention
from vila_mc.model.megatron_config import language_config

pytestmark = pytest.mark.gpu

NEAR = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Norm of the difference over the norm of what is right."""
LENGTH = 257
SAMPLES = ((1, 128, 63, 7), (257,), (100, 100))
"""Of rows of LENGTH: with padding, without, and equal ones, which share a plan."""


def _inputs(heads: int, groups: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(LENGTH, len(SAMPLES), count, width) for count in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _with_gradients(
    attention: TorchAttention, inputs: list[Tensor], dtype: torch.dtype, device: str, packed: bool
) -> list[Tensor]:
    """The output and the gradients of query, key and value, in fp64 on the CPU."""
    leaves = [each.to(dtype).to(device).requires_grad_() for each in inputs]
    rows = PackedRows.of(SAMPLES, LENGTH) if packed else None
    output = attention(*leaves, attention_mask=None, packed_seq_params=rows)
    generator = torch.Generator().manual_seed(2)
    torch.autograd.backward(output, torch.randn(output.shape, generator=generator).to(output))
    return [each.detach().cpu().double() for each in (output, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize(
    ("heads", "groups", "width", "mask", "packed"),
    [
        (8, 8, 128, AttnMaskType.causal, True),
        (8, 2, 128, AttnMaskType.causal, True),
        (4, 1, 80, AttnMaskType.causal, True),
        (8, 2, 128, AttnMaskType.causal, False),
        (4, 4, 72, AttnMaskType.no_mask, False),
    ],
    ids=["packed", "packed, groups", "packed, one group of 80", "causal, groups", "SigLIP"],
)
def test_a_gpu_attends_as_a_cpu_does(
    heads: int, groups: int, width: int, mask: AttnMaskType, packed: bool, dtype: torch.dtype
) -> None:
    attention = TorchAttention(language_config(tiny_run()), 1, mask, "self")
    inputs = [each.to(dtype).double() for each in _inputs(heads, groups, width)]
    got = _with_gradients(attention, inputs, dtype, "cuda", packed)
    wanted = _with_gradients(attention, inputs, torch.float64, "cpu", packed)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]
    kind = f"{heads} heads of {width}, {groups} groups, {'packed' if packed else mask.name}"
    print(f"\n| attention on GPU against fp64, {str(dtype)[6:]}, {kind} | {max(errors):.1e} |")
    assert max(errors) < NEAR[dtype], errors
    assert torch.equal(got[0] == 0, wanted[0] == 0), "padding is 0, and nothing else"

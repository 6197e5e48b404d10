"""The attention kernel that a rehearsal assumes is the one that a GPU takes."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.rehearsal.small import rehearsed, small_run
from vila_mc.rehearsal.attention import kernel_of_a_gpu

# precision, width of a head, whether fewer heads of keys than of queries, kernel
CASES = [
    (torch.bfloat16, 128, False, "flash"),
    (torch.bfloat16, 128, True, "flash"),
    (torch.bfloat16, 72, False, "flash"),  # SigLIP so400m
    (torch.bfloat16, 20, False, "flash"),
    (torch.float16, 64, True, "flash"),
    (torch.float16, 264, False, "efficient"),
    (torch.bfloat16, 320, True, "math"),
    (torch.float32, 128, False, "efficient"),
    (torch.float32, 128, True, "math"),
    (torch.float32, 18, False, "math"),
    (torch.float64, 64, False, "math"),
]


@pytest.mark.parametrize(("dtype", "width", "is_grouped", "kernel"), CASES)
def test_by_format_width_and_groups(
    dtype: torch.dtype, width: int, is_grouped: bool, kernel: str
) -> None:
    assert kernel_of_a_gpu(dtype, width, is_grouped=is_grouped) == kernel


def test_grouped_queries_in_fp32_keep_no_scores(guard: Path) -> None:
    """torch's kernel for fp32 on a GPU wants as many heads of keys as of queries."""
    run = small_run(
        model={"language": {"max_positions": 512}},
        data={"sequence_length": 512},
        train={"precision": "fp32"},
    )
    assert run.model.language.kv_heads < run.model.language.heads
    tensors = rehearsed(guard, run).step.tensors
    assert not [one for one in tensors if one.shape[-2:] == (512, 512)]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "width", "is_grouped", "kernel"), CASES)
def test_torch_chooses_the_same(
    dtype: torch.dtype, width: int, is_grouped: bool, kernel: str
) -> None:
    """cuDNN's counts as flash: it keeps the same tensors."""
    query = torch.randn(1, 4, 64, width, dtype=dtype, device="cuda", requires_grad=True)
    key = torch.randn(1, 2 if is_grouped else 4, 64, width, dtype=dtype, device="cuda")
    key.requires_grad_()
    output = F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=is_grouped)
    nodes, names = [output.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(node.name())
            nodes += [parent for parent, _ in node.next_functions]
    fused = {"Flash": "flash", "Cudnn": "flash", "Efficient": "efficient"}
    chosen = {kind for part, kind in fused.items() for name in names if part in name}
    assert (chosen or {"math"}) == {kernel}

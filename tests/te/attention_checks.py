"""Attention and what is around it, beside independent computations. Under emulation alone."""

import math
from itertools import pairwise

import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from torch import Tensor
from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

from tests.te.modules import BF16, FP32, relative, worst


def _attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """[s, b, a, d] with groups of key and value, in fp64 and step by step."""
    q, k, v = (t.double().permute(1, 2, 0, 3) for t in (query, key, value))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)


def _heads(length: int, *batch: int) -> list[Tensor]:
    shapes = [(length, *batch, heads, 16) for heads in (8, 4, 4)]
    return [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]


def _compare_attention(output: Tensor, wanted: Tensor, heads: list[Tensor]) -> list[float]:
    """Output and the gradients of query, key and value."""
    grad = torch.randn_like(wanted)
    got = torch.autograd.grad(output.reshape(wanted.shape), heads, grad.bfloat16())
    right = torch.autograd.grad(wanted, heads, grad.bfloat16().double())
    return [relative(output.reshape(wanted.shape), wanted), *map(relative, got, right)]


def attention() -> float:
    """Rows of one sample each, causal and not; bf16 takes the fused softmax."""
    found = []
    for mask in ("causal", "no_mask"):
        for length in (32, 33):  # 33 does not suit the fused softmax
            heads = _heads(length, 2)
            attend = te.DotProductAttention(
                8, 16, num_gqa_groups=4, attention_dropout=0.0, attn_mask_type=mask
            )
            wanted = _attention(*heads, is_causal=mask == "causal")
            found += _compare_attention(attend(*heads), wanted, heads)
    return worst(found, 1.5e-2)


def packed_attention() -> float:
    """Samples of 7, 24 and 9 positions in one row, each attending to itself."""
    ends = [0, 7, 31, 40]
    heads = _heads(40)
    attend = te.DotProductAttention(
        8, 16, num_gqa_groups=4, attention_dropout=0.0, qkv_format="thd"
    )
    output = attend(
        *heads,
        attn_mask_type="padding_causal",
        **dict.fromkeys(("cu_seqlens_q", "cu_seqlens_kv"), torch.tensor(ends, dtype=torch.int32)),
        **dict.fromkeys(("max_seqlen_q", "max_seqlen_kv"), 24),
    )
    samples = [[t[start:end, None] for t in heads] for start, end in pairwise(ends)]
    wanted = torch.cat([_attention(*each, is_causal=True)[:, 0] for each in samples])
    return worst(_compare_attention(output, wanted, heads), 1.5e-2)


def softmax() -> float:
    """Every fused kind, with a row that sees nothing, and the gradient they have in common."""
    scores = torch.randn(2, 4, 24, 24).bfloat16()
    later = torch.ones(24, 24, dtype=torch.bool).triu(1)
    mask = torch.rand(2, 1, 24, 24) < 0.3
    mask[:, :, 5] = True
    scaled = scores.double() * 0.5
    causal = scaled.masked_fill(later, -math.inf).softmax(-1)
    masked = scaled.masked_fill(mask, -math.inf).softmax(-1).nan_to_num(0.0)
    flat = scores.view(8, 24, 24)
    leaf = scaled.clone().requires_grad_()
    grad = torch.randn(2, 4, 24, 24).bfloat16()
    (wanted_grad,) = torch.autograd.grad(leaf.softmax(-1), leaf, grad.double())
    plain = tex.scaled_softmax_forward(scores, 0.5)
    pairs = (
        (plain, scaled.softmax(-1)),
        (tex.scaled_masked_softmax_forward(scores, mask, 0.5), masked),
        (tex.scaled_upper_triang_masked_softmax_forward(flat, 0.5), causal.view(8, 24, 24)),
        (tex.scaled_aligned_causal_masked_softmax_forward(scores, 0.5), causal),
        (tex.scaled_softmax_backward(grad, plain, 0.5), wanted_grad * 0.5),
    )
    return worst((relative(*pair) for pair in pairs), BF16)


def rope() -> float:
    """Fused against Transformer Engine's own unfused one: layouts, partial width, neighbours."""
    found = []
    angles = torch.randn(24, 1, 1, 12)
    ends = torch.tensor([0, 9, 24], dtype=torch.int32)
    for layout, shape, lengths in (
        ("sbhd", (24, 2, 3, 16), None),
        ("bshd", (2, 24, 3, 16), None),
        ("thd", (24, 3, 16), ends),
    ):
        for interleaved in (False, True):
            results = []
            t = torch.randn(shape)
            for fused in (True, False):
                leaf = t.clone().requires_grad_()
                out = apply_rotary_pos_emb(
                    leaf,
                    angles,
                    tensor_format=layout,
                    interleaved=interleaved,
                    fused=fused,
                    cu_seqlens=lengths,
                )
                grad = torch.linspace(-1, 1, out.numel()).view(out.shape)
                results.append((out, *torch.autograd.grad(out, leaf, grad)))
            found += [relative(*pair) for pair in zip(*results, strict=True)]
    return worst(found, FP32)

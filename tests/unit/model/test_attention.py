"""Attention against softmax(q k^T / sqrt(d)) v written out."""

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from tests.support.tiny import tiny_run
from vila_mc.model.attention import TorchAttention
from vila_mc.model.megatron_config import language_config


def _attention(mask, **options):
    config = language_config(tiny_run())
    return TorchAttention(config, 1, mask, "self", **options)


def _qkv(groups):
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 2, heads, 8) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _plain(query, key, value, is_causal, scale):
    heads, per_group = query.shape[2], query.shape[2] // key.shape[2]
    outputs = []
    for head in range(heads):
        q, k, v = query[:, :, head], key[:, :, head // per_group], value[:, :, head // per_group]
        scores = torch.einsum("ibd,jbd->bij", q, k) * scale
        if is_causal:
            later = torch.ones(scores.shape[1:]).triu(diagonal=1).bool()
            scores = scores.masked_fill(later, float("-inf"))
        outputs.append(torch.einsum("bij,jbd->ibd", scores.softmax(-1), v))
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_equals_the_formula(mask, groups):
    query, key, value = _qkv(groups)
    expected = _plain(query, key, value, mask == AttnMaskType.causal, scale=8**-0.5)
    output = _attention(mask)(query, key, value, None)
    assert torch.allclose(output, expected, atol=1e-6)


def test_mask_and_scale_can_be_given():
    query, key, value = _qkv(groups=4)
    attention = _attention(AttnMaskType.causal, softmax_scale=0.5)
    output = attention(query, key, value, None, attn_mask_type=AttnMaskType.no_mask)
    assert torch.allclose(output, _plain(query, key, value, False, scale=0.5), atol=1e-6)


def test_a_mask_tensor_is_an_error_of_ours():
    query, key, value = _qkv(groups=4)
    with pytest.raises(AssertionError, match="masks are given by type"):
        _attention(AttnMaskType.causal)(query, key, value, torch.ones(1))

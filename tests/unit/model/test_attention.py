"""Attention against softmax(q k^T / sqrt(d)) v written out."""

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from tests.support.tiny import tiny_run
from vila_mc.model import attention as attention_module
from vila_mc.model.attention import PackedRows, TorchAttention
from vila_mc.model.language import restart_positions
from vila_mc.model.megatron_config import language_config


def _attention(mask: AttnMaskType, **options: float) -> TorchAttention:
    config = language_config(tiny_run())
    return TorchAttention(config, 1, mask, "self", **options)


def _qkv(groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 2, heads, 8) for heads in (4, groups, groups)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float
) -> torch.Tensor:
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
def test_equals_the_formula(mask: AttnMaskType, groups: int) -> None:
    query, key, value = _qkv(groups)
    expected = _plain(query, key, value, mask == AttnMaskType.causal, scale=8**-0.5)
    output = _attention(mask)(query, key, value, None)
    assert torch.allclose(output, expected, atol=1e-6)


def test_mask_and_scale_can_be_given() -> None:
    query, key, value = _qkv(groups=4)
    attention = _attention(AttnMaskType.causal, softmax_scale=0.5)
    output = attention(query, key, value, None, attn_mask_type=AttnMaskType.no_mask)
    assert torch.allclose(output, _plain(query, key, value, False, scale=0.5), atol=1e-6)


def test_a_mask_tensor_is_an_error_of_ours() -> None:
    query, key, value = _qkv(groups=4)
    with pytest.raises(AssertionError, match="masks are given by type"):
        _attention(AttnMaskType.causal)(query, key, value, torch.ones(1))


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    starts_of_keys: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What torch.nn.attention.varlen_attn computes, on any device and in any precision."""
    assert torch.equal(starts, starts_of_keys)
    assert starts.dtype == torch.int32
    lengths = starts.diff().tolist()
    assert max(lengths) == longest == longest_key
    assert window_size == (-1, 0)
    assert enable_gqa == (query.size(1) != key.size(1))
    parts = zip(*(t.transpose(0, 1).split(lengths, 1) for t in (query, key, value)), strict=True)
    contexts = [
        torch.nn.functional.scaled_dot_product_attention(
            *part, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        for part in parts
    ]
    return torch.cat(contexts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("in_one_call", [False, True])
def test_packed_samples_attend_to_themselves_alone(
    in_one_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_one_call:  # as on a GPU
        monkeypatch.setattr(attention_module, "varlen_attn", _varlen)
        monkeypatch.setattr(attention_module, "_NEEDS_GQA_SAID", True)
        monkeypatch.setattr(TorchAttention, "_knows_boundaries", lambda *_: True)
    attention = _attention(AttnMaskType.causal)
    lengths = ((2, 3), (1, 1, 4))
    query, key, value = _qkv(2)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    packed = attention(
        query, key, value, attention_mask=None, packed_seq_params=PackedRows.of(lengths, 6)
    )
    packed.square().sum().backward()
    gradients = [tensor.grad.clone() for tensor in (query, key, value)]
    for tensor in (query, key, value):
        tensor.grad = None
    for row, of_row in enumerate(lengths):
        start = 0
        for length in of_row:
            part = [t[start : start + length, row : row + 1] for t in (query, key, value)]
            alone = attention(*part, attention_mask=None)
            torch.testing.assert_close(packed[start : start + length, row : row + 1], alone)
            alone.square().sum().backward()
            start += length
        assert not packed[start:, row].any()  # padding
    for packed_gradient, tensor in zip(gradients, (query, key, value), strict=True):
        torch.testing.assert_close(packed_gradient, tensor.grad)


def test_positions_of_packed_rows_restart() -> None:
    angles = torch.arange(6.0).view(6, 1, 1, 1)
    restarted = restart_positions(angles, ((2, 3), (6,)))
    assert restarted[:, :, 0, 0].T.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]

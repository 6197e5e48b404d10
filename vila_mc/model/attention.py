"""Attention on torch's fused kernel, as a Megatron-Core ``core_attention``.

Packed rows take one call per sample, or in half precision on a GPU one for all of them: no mask is
built and no score between samples is computed.

Megatron-Core 0.19.2's own DotProductAttention materialises the [b, a, s, s] scores; its fused one
needs Transformer Engine. At 2,048 tokens on a CPU this class takes 0.2x the time and 0.16x the
memory of the former, and the same code runs FlashAttention on a GPU.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from vila_mc.model.kv_cache import KeyValueCache

_NEEDS_GQA_SAID = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""torch 2.11 takes fewer key heads as they are, later versions want to be told."""


@dataclass
class PackedRows(PackedSeqParams):  # type: ignore[misc]
    """Where the samples of packed rows end, on its way through Megatron-Core to the attention.

    Rows stay [s, b, ...]; Megatron-Core's own packed format has no rows and needs kernels of
    Transformer Engine.
    """

    sample_lengths: tuple[tuple[int, ...], ...] = ()
    """Positions of each sample of each of the b rows; what is left of a row is padding."""
    _on_device: tuple[Tensor, Tensor | None] | None = None

    @staticmethod
    def of(sample_lengths: tuple[tuple[int, ...], ...], length: int) -> "PackedRows":
        """Rows of ``length`` positions."""
        return PackedRows(
            qkv_format="sbhd",
            max_seqlen_q=length,
            max_seqlen_kv=length,
            sample_lengths=sample_lengths,
        )

    def boundaries(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Where samples begin, on a device; made once for all layers.

        Returns:
            The first position of each sample and each padding, counted over all rows, and the end:
            [n + 1] int32. Which positions are padding, [b, s], or None if none is.
        """
        if self._on_device is None:
            length = self.max_seqlen_q
            pieces = [p for row in self.sample_lengths for p in (*row, length - sum(row)) if p]
            starts = torch.tensor([0, *accumulate(pieces)], dtype=torch.int32, device=device)
            ends = [sum(row) for row in self.sample_lengths]
            is_padding = None
            if min(ends) < length:
                is_padding = torch.tensor([[i >= end for i in range(length)] for end in ends])
                is_padding = is_padding.to(device)
            self._on_device = starts, is_padding
        return self._on_device


class TorchAttention(MegatronModule):  # type: ignore[misc]
    """softmax(q k^T / sqrt(d)) v, causal or unmasked; padding must stand at the end of a row.

    Args:
        config: dropout and sequence parallelism are read from it.
        attn_mask_type: causal (language) or no_mask (vision).
        softmax_scale: factor of the scores; 1 / sqrt(d) if None.

    The other arguments are what Megatron-Core passes to every ``core_attention``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, a/tp, d].
            key, value: [s, b, groups/tp, d]; each group serves a / groups query heads.
            attention_mask: must be None; masks are given by type.
            packed_seq_params: the samples of packed rows (``PackedRows``), what was read before
                (``KeyValueCache``), or None.

        Returns:
            [s, b, a/tp * d]; 0 at the padding of packed rows.
        """
        assert attention_mask is None, "masks are given by type"
        assert attention_bias is None, "there is no bias"
        is_causal = (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal
        if self._keeps_all_for_values(key, value):
            value = value.clone(memory_format=torch.contiguous_format)
        inputs_basd = [t.permute(1, 2, 0, 3) for t in (query, key, value)]

        def attend() -> Tensor:
            if packed_seq_params is None:
                return self._attend(inputs_basd, is_causal)
            if isinstance(packed_seq_params, KeyValueCache):
                return self._attend_cached(inputs_basd, packed_seq_params)
            if self._knows_boundaries(query, is_causal):
                return self._attend_between(inputs_basd, packed_seq_params)
            return self._attend_packed(inputs_basd, is_causal, packed_seq_params.sample_lengths)

        if self.dropout and self.training and not self.config.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                context_basd = attend()
        else:
            context_basd = attend()
        s, b = query.shape[:2]
        return context_basd.permute(2, 0, 1, 3).reshape(s, b, -1)

    def _keeps_all_for_values(self, key: Tensor, value: Tensor) -> bool:
        """Whether values are all that the backward pass still reads of what they were cut from.

        Queries and keys have been rotated into memory of their own, while the values would keep the
        projection's whole output: a third of what attention keeps. Norms keep it as well.
        """
        waits = torch.is_grad_enabled() and value.requires_grad
        is_alone = value._is_view() and key._base is not value._base
        return waits and is_alone and not self.config.qk_layernorm

    def _attend_cached(self, inputs_basd: Sequence[Tensor], cache: KeyValueCache) -> Tensor:
        """New positions attend to those read before, too: [b, a, s, d]."""
        query, key, value = inputs_basd
        mask = cache.mask(query.size(2))
        key, value = cache.append(self.layer_number, key, value)
        return self._attend((query, key, value), is_causal=mask is None, mask=mask)

    def _attend(
        self, inputs_basd: Sequence[Tensor], is_causal: bool, mask: Tensor | None = None
    ) -> Tensor:
        """[b, a, s, d] from a query of that shape and key and value [b, groups, s, d]."""
        query, key, value = inputs_basd
        if query.is_cuda and query.dtype == torch.float32 and query.size(1) != key.size(1):
            # On a GPU torch has no kernel for these that does not keep all scores.
            served = query.size(1) // key.size(1)
            key, value = (t.repeat_interleave(served, dim=1) for t in (key, value))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )

    def _knows_boundaries(self, query: Tensor, is_causal: bool) -> bool:
        """Whether one kernel takes samples of all lengths: FlashAttention as torch carries it."""
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        has_kernel = query.is_cuda and is_half and query.size(3) in range(8, 257, 8)
        return has_kernel and is_causal and not (self.dropout and self.training)

    def _attend_between(self, inputs_basd: list[Tensor], rows: PackedRows) -> Tensor:
        """``_attend_packed`` in one call, causal: [b, a, s, d].

        On a GPU a call per sample is slow: cuDNN, which torch 2.11 prefers on an H100, plans its
        kernel anew for each length it meets. Rows of 8 samples of ever new lengths took 5.4 times
        as long as those of equal ones (docs/gpu_results.md).
        """
        b, s = inputs_basd[0].shape[0], inputs_basd[0].shape[2]
        query, key, value = (t.transpose(1, 2).flatten(0, 1) for t in inputs_basd)
        starts, is_padding_bs = rows.boundaries(query.device)
        is_grouped = query.size(1) != key.size(1)
        longest = max(max(*row, s - sum(row)) for row in rows.sample_lengths)
        options: dict[str, Any] = {"enable_gqa": is_grouped} if _NEEDS_GQA_SAID else {}
        options |= dict(scale=self.softmax_scale, window_size=(-1, 0))
        inputs_nad = (query, key, value)
        context_nad = varlen_attn(*inputs_nad, starts, starts, longest, longest, **options)
        assert isinstance(context_nad, Tensor), "no more was asked for"
        context_basd: Tensor = context_nad.view(b, s, *query.shape[1:]).transpose(1, 2)
        if is_padding_bs is None:
            return context_basd
        return context_basd.masked_fill(is_padding_bs[:, None, :, None], 0.0)

    def _attend_packed(
        self,
        inputs_basd: list[Tensor],
        is_causal: bool,
        sample_lengths: tuple[tuple[int, ...], ...],
    ) -> Tensor:
        """Each sample of each row by itself: [b, a, s, d]."""
        contexts = []
        for row, lengths in enumerate(sample_lengths):
            padding = inputs_basd[0].size(2) - sum(lengths)
            # One split has one backward that writes once; a slice per sample would fill the whole
            # row with zeros for each.
            samples = [
                torch.split(t[row : row + 1], [*lengths, padding], dim=2) for t in inputs_basd
            ]
            *parts, padded = zip(*samples, strict=True)
            context = [self._attend(part, is_causal) for part in parts]
            contexts.append(torch.cat([*context, torch.zeros_like(padded[0])], dim=2))
        return torch.cat(contexts)

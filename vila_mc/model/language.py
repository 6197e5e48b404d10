"""The language model: Megatron-Core's GPTModel with a padding-safe loss."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from vila_mc.config.lora import LoraConfig
from vila_mc.config.model import LanguageConfig
from vila_mc.model.attention import PackedRows
from vila_mc.model.kv_cache import KeyValueCache
from vila_mc.model.layer_specs import language_block_spec
from vila_mc.model.rope import inverse_frequencies
from vila_mc.topology.stage_plan import StagePlan


class LanguageModel(GPTModel):  # type: ignore[misc]
    """One stage's part of a Llama-like decoder.

    Megatron-Core 0.19.2 lets the padding rows of the vocabulary enter the softmax; here their
    logits are masked first.
    """

    def __init__(
        self,
        config: TransformerConfig,
        language: LanguageConfig,
        plan: StagePlan,
        groups: ProcessGroupCollection,
        virtual_stage: int | None,
        lora: LoraConfig,
    ) -> None:
        super().__init__(
            config,
            language_block_spec(config, len(plan.layers), lora),
            vocab_size=language.padded_vocab(),
            max_sequence_length=language.max_positions,
            pre_process=plan.has_embedding,
            post_process=plan.has_head,
            position_embedding_type="rope",
            rotary_base=language.rope_theta,
            share_embeddings_and_output_weights=language.tied_embeddings,
            # The splice works on whole sequences; VilaModel scatters after it.
            scatter_embedding_sequence_parallel=False,
            pg_collection=groups,
            vp_stage=virtual_stage,
        )
        self.num_real_tokens = language.vocab_size
        # Megatron-Core 0.19.2 knows Llama 3.1's scaling only with fixed constants.
        self.rotary_pos_emb.inv_freq = inverse_frequencies(language)

    def _preprocess(  # type: ignore[no-untyped-def]
        self,
        *args: Any,
        packed_seq_params: PackedRows | KeyValueCache | None = None,
        **options: Any,
    ):
        """Megatron-Core's, with positions that count from 0 in each sample of a packed row, and go
        on in each row behind what was read before."""
        embedded, rotary_s11d, *rest = super()._preprocess(
            *args, packed_seq_params=packed_seq_params, **options
        )
        if isinstance(packed_seq_params, KeyValueCache):
            at = packed_seq_params.new_positions(embedded.size(0))
            rotary_s11d = rotary_s11d[at.T, 0]
        elif packed_seq_params is not None:
            rotary_s11d = restart_positions(rotary_s11d, packed_seq_params.sample_lengths)
        return embedded, rotary_s11d, *rest

    def _postprocess(  # type: ignore[no-untyped-def]
        self,
        hidden_states: Tensor,
        *args: Any,
        packed_seq_params: PackedRows | KeyValueCache | None = None,
        **options: Any,
    ):
        """Megatron-Core's, with logits of the positions alone that are wanted."""
        if isinstance(packed_seq_params, KeyValueCache) and packed_seq_params.wanted is not None:
            rows = torch.arange(hidden_states.size(1), device=hidden_states.device)
            hidden_states = hidden_states[packed_seq_params.wanted, rows][None]
        return super()._postprocess(
            hidden_states, *args, packed_seq_params=packed_seq_params, **options
        )

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy of every position.

        Args:
            labels: [b, s]; ignored positions may hold any id, also a negative one.
            logits: [s, b, v/tp].

        Returns:
            [b, s].
        """
        self.mask_padded_vocabulary(logits)
        loss: Tensor = super().compute_language_model_loss(labels.clamp(min=0), logits)
        return loss

    def mask_padded_vocabulary(self, logits: Tensor) -> None:
        """Make padding rows of the vocabulary impossible, in place. logits: [..., v/tp].

        Their probability is 0, and so is their gradient: autograd need not know, which would copy
        the gradient of all logits to put zeros there.
        """
        shard = logits.size(-1)
        first_padding = self.num_real_tokens - self.pg_collection.tp.rank() * shard
        if first_padding < shard:
            with torch.no_grad():
                logits[..., max(first_padding, 0) :] = torch.finfo(logits.dtype).min


def restart_positions(rotary_s11d: Tensor, sample_lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """Rotary angles of packed rows: [s, b, 1, d] from the [s, 1, 1, d] of one long sample."""
    rows = []
    for lengths in sample_lengths:
        padding = rotary_s11d.size(0) - sum(lengths)
        rows.append(torch.cat([rotary_s11d[:length] for length in (*lengths, padding)]))
    return torch.cat(rows, dim=1)

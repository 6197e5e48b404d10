"""VilaModel: what one pipeline stage of a VILA holds and does."""

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch
from vila_mc.kernels.ops import normalize_patchify, splice_visual
from vila_mc.model.attention import PackedRows
from vila_mc.model.connectors.connector import Connector, build_connector
from vila_mc.model.kv_cache import KeyValueCache
from vila_mc.model.language import LanguageModel
from vila_mc.model.megatron_config import language_config
from vila_mc.model.primary_weights import quantize_weights
from vila_mc.model.vision_tower import build_vision_tower
from vila_mc.topology.stage_plan import StagePlan


class VilaModel(MegatronModule):  # type: ignore[misc]
    """One (virtual) pipeline stage: vision, connector, splice and some language layers.

    Args:
        config: the whole configuration.
        plan: what this stage holds.
        groups: process groups of this rank.
        virtual_stage: index among the stages of this rank, None without virtual stages.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: StagePlan,
        groups: ProcessGroupCollection,
        virtual_stage: int | None = None,
    ) -> None:
        super().__init__(config=language_config(config))
        self.run_config = config
        self.plan = plan
        self.groups = groups
        # Megatron-Core's schedules and gradient finalisation read the next five from the model.
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = plan.has_embedding, plan.has_head
        self.vp_stage = virtual_stage
        self.share_embeddings_and_output_weights = config.model.language.tied_embeddings
        self.needs_every_gradient = config.parallel.overlap_grad_reduce
        self.learns_below = True
        """Whether anything in an earlier stage learns: if not, no gradient leaves this one."""
        self._no_gradient: Tensor | None = None

        self.vision: torch.nn.Module | None = None
        self.connector: Connector | None = None
        if plan.has_vision:
            self.vision = build_vision_tower(config, groups)
            is_narrow = config.train.init_std is None
            self.connector = build_connector(
                self.config,
                config.model,
                is_narrow=is_narrow,
                shared_by=groups.tp if config.splits_connector() else None,
            )
        self.language = LanguageModel(
            self.config, config.model.language, plan, groups, virtual_stage, config.lora
        )

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        """Receive the hidden states [s/tp, b, h] of the previous stage; None on the first."""
        tensors = input_tensor if isinstance(input_tensor, list) else [input_tensor]
        received = tensors[0]
        if received is not None and not self.learns_below:
            received = self._without_backward(received)
        self.language.set_input_tensor(received)

    def _without_backward(self, received: Tensor) -> Tensor:
        """What was received, as the beginning of the graph.

        Megatron-Core's interleaved schedule waits for a gradient of it all the same, and gets zeros
        that are never computed; the other one is told not to (``parallel.frozen_layers``).
        """
        if self.vp_stage is not None and received.requires_grad:
            if self._no_gradient is None or self._no_gradient.shape != received.shape:
                self._no_gradient = torch.zeros_like(received, requires_grad=False)
            received.grad = self._no_gradient
        return received.detach()

    def has_adapters(self) -> bool:
        """Whether LoRA adapters stand beside the weights of the model."""
        return bool(self.run_config.lora.parts())

    def set_is_first_microbatch(self) -> None:
        """Have FP8 layers make their copies of the weights anew in the next pass."""
        parts: list[Any] = [self.vision, self.language]
        for part in parts:
            if part is not None:
                part.set_is_first_microbatch()

    def quantize_primary_weights(self) -> None:
        """Keep the weights in FP8 that ``train.fp8.primary_weights`` names, from now on."""
        fp8 = self.run_config.train.fp8
        if fp8.primary_weights and self.vision is not None and fp8.concerns("vision"):
            quantize_weights(self.vision)
        if fp8.primary_weights and fp8.concerns("language"):
            quantize_weights(self.language)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The embedding's weight where it must be kept in step with the output layer's."""
        weight: Tensor | None = self.language.shared_embedding_or_output_weight()
        return weight

    def forward(
        self, batch: Microbatch, *, with_loss: bool = True, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Run this stage on one microbatch.

        Args:
            batch: what is read; with a cache, what comes behind what was read before.
            with_loss: give the loss rather than the logits.
            cache: what was read before, which keeps this pass, too.

        Returns:
            hidden states [s/tp, b, h]; on the last stage the loss of every position [b, s], or
            the logits [b, s, v/tp] without loss.
        """
        rows: PackedRows | KeyValueCache | None = cache
        if cache is None and batch.is_packed():
            rows = PackedRows.of(batch.sample_lengths, batch.tokens.size(1))
        embedded = self._embed(batch) if self.plan.has_embedding else None
        output: Tensor = self.language(
            input_ids=batch.tokens,
            position_ids=None,
            attention_mask=None,
            decoder_input=embedded,
            labels=batch.labels if self.plan.has_head and with_loss else None,
            packed_seq_params=rows,
        )
        if self.plan.has_head and not with_loss:
            self.language.mask_padded_vocabulary(output)
        return output

    def encode_images(self, images_n3yx: Tensor) -> Tensor:
        """uint8 images [n, 3, y, x] -> visual tokens [n, q, h]."""
        assert self.connector is not None, "this stage has no vision"
        visual: Tensor = self.connector(self.patch_features(images_n3yx))
        return visual

    def patch_features(self, images_n3yx: Tensor) -> Tensor:
        """uint8 images [n, 3, y, x] -> features [n, class tokens + p, e]."""
        assert self.vision is not None, "this stage has no vision"
        vision = self.run_config.model.vision
        seen = vision.grid() * vision.patch_size  # SigLIP's patches leave pixels over
        patches = normalize_patchify(
            images_n3yx[..., :seen, :seen].contiguous(),
            vision.patch_size,
            self.config.params_dtype,
            vision.resolved_channel_mean(),
            vision.resolved_channel_std(),
        )
        features: Tensor = self.vision(patches)
        return features

    def _embed(self, batch: Microbatch) -> Tensor:
        """Token embeddings with visual tokens spliced in: [s/tp, b, h]."""
        embedded: Tensor = self.language.embedding(input_ids=batch.tokens, position_ids=None)
        if self.plan.has_vision:
            if len(batch.images) or len(batch.image_starts):
                visual = self.encode_images(batch.images)
                embedded = splice_visual(embedded, visual, batch.image_starts)
            elif self._wants_gradients_of_images():
                embedded = embedded + self._nothing_from_a_blank_image(batch.images)
        if self.config.sequence_parallel:
            shard = tensor_parallel.scatter_to_sequence_parallel_region(
                embedded, group=self.groups.tp
            )
            embedded = shard.clone()  # the shard is a view, which would keep the whole alive
        return embedded

    def _wants_gradients_of_images(self) -> bool:
        """Whether what learns from images must get a gradient in every microbatch."""
        seeing = [part for part in (self.vision, self.connector) if part is not None]
        learns = any(weight.requires_grad for part in seeing for weight in part.parameters())
        return self.needs_every_gradient and torch.is_grad_enabled() and learns

    def _nothing_from_a_blank_image(self, images_n3yx: Tensor) -> Tensor:
        """A zero through which every vision parameter gets a zero gradient.

        With overlapped gradient reduction, Megatron-Core 0.19.2 asserts in the next step when a
        parameter got no gradient in a microbatch, as vision does in one without images.
        """
        _, channels, height, width = images_n3yx.shape
        blank = images_n3yx.new_zeros((1, channels, height, width))
        return 0.0 * self.encode_images(blank).sum()

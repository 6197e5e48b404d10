"""VILA (arXiv 2312.07533): vision tower -> connector -> visual tokens among text tokens.

Shape letters: b rows, s positions, h language width, n images, p patches, e tower width, q visual
tokens per image.
"""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_vila import VilaConfig
from .connector_vila import build_connector

IGNORE_LABEL = -100


class VilaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Images and text in, text out."""

    config_class = VilaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VilaConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.vision_tower = AutoModel.from_config(vision)
        # Features are patch states before any final norm, so the tower has none.
        self.vision_tower.post_layernorm = nn.Identity()
        self.connector = build_connector(
            config.connector_kind,
            config.connector_options,
            vision.hidden_size,
            text.hidden_size,
        )
        self.language_model = AutoModelForCausalLM.from_config(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [n, 3, y, x] -> visual tokens [n, q, h]."""
        states = self.vision_tower(pixel_values=pixel_values).last_hidden_state
        visual: Tensor = self.connector(states[:, self.config.class_tokens :])
        return visual

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, with visual tokens in place of the placeholders.

        Args:
            input_ids: [b, s]; ``config.image_token_id`` at q positions for each image, or tile.
            pixel_values: [n, 3, y, x], images or their tiles in reading order over the rows.
            attention_mask: [b, s], 0 at padding.
            labels: [b, s], not shifted, -100 where nothing is scored. Placeholders never are.
            kwargs: for the language model, its cache among them, under the name that this version
                of transformers has for it.

        Raises:
            ValueError: placeholders and images disagree in number.
        """
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, pixel_values)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("give either input_ids or inputs_embeds.")
        if labels is not None and input_ids is not None:
            labels = labels.masked_fill(input_ids == self.config.image_token_id, IGNORE_LABEL)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Text embeddings with visual tokens spliced in: [b, s, h]."""
        is_image = input_ids == self.config.image_token_id
        # The placeholder has no row in the embedding table; what stands there is overwritten.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        num_places = int(is_image.sum())
        if pixel_values is None:
            if num_places:
                raise ValueError(
                    f"input_ids hold {num_places} image placeholders, but there are no "
                    "pixel_values. Pass what the processor returned for the images."
                )
            return embeds
        visual = self.get_image_features(pixel_values)
        n, q, h = visual.shape
        if num_places != n * q:
            raise ValueError(
                f"input_ids hold {num_places} image placeholders, but {n} images x {q} visual "
                f"tokens = {n * q}. Build both with this model's processor."
            )
        index = is_image.unsqueeze(-1).expand_as(embeds)
        return embeds.masked_scatter(index, visual.reshape(n * q, h).to(embeds))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Each row ``expand_size`` times, for beams or several answers, with all of its images.

        transformers would repeat image by image, which puts a row's second image into its first
        copy.
        """
        pixels = kwargs.pop("pixel_values", None)
        expanded, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        if pixels is not None:
            rows = [pixels] if input_ids is None else self._by_row(input_ids, pixels)
            kwargs["pixel_values"] = torch.cat([row for row in rows for _ in range(expand_size)])
        return expanded, kwargs

    def _by_row(self, input_ids: Tensor, pixels: Tensor) -> Sequence[Tensor]:
        """Pixels [n, 3, y, x] of each row; all as one where placeholders and images disagree."""
        places = (input_ids == self.config.image_token_id).sum(1).tolist()
        visual_tokens = max(1, sum(places) // len(pixels))
        counts = [count // visual_tokens for count in places]
        # Where they disagree, forward says so.
        return torch.split(pixels, counts) if sum(counts) == len(pixels) else [pixels]

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Processors that look tokens up by id (repetition penalty) never see the placeholder."""
        processors = super()._get_logits_processor(*args, **kwargs)
        return _WithoutPlaceholder(processors, self.config.text_config.vocab_size)


class _WithoutPlaceholder(LogitsProcessorList):
    """Shows each processor the prompt with placeholders turned into token 0."""

    def __init__(self, processors: LogitsProcessorList, vocab_size: int) -> None:
        super().__init__(processors)
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        known = input_ids.masked_fill(input_ids >= self.vocab_size, 0)
        return super().__call__(known, scores, **kwargs)

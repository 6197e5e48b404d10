"""VILA (arXiv 2312.07533): vision tower -> connector -> visual tokens among text tokens.

Shape letters: b rows, s positions, h language width, n images, p patches, e tower width, q visual
tokens per image.
"""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_vila import VilaConfig

IGNORE_LABEL = -100
_BLOCK_SIDE = {"linear": 1, "mlp2x_gelu": 1, "downsample_linear": 2, "mlp_downsample": 2}


def downsample_gather(patches_npe: Tensor, factor: int) -> Tensor:
    """Fold each ``factor x factor`` block of patches into one token.

    A grid that ``factor`` does not divide gets zeros at the bottom and right.

    Args:
        patches_npe: [n, p, e], p = g * g patches in row-major order.
        factor: side of a block.

    Returns:
        [n, ceil(g / factor)**2, factor**2 * e], row-major; channels ordered (dy, dx, e).
    """
    n, p, e = patches_npe.shape
    grid = round(p**0.5)
    side = -(-grid // factor)
    gap = side * factor - grid
    padded = F.pad(patches_npe.reshape(n, grid, grid, e), (0, 0, 0, gap, 0, gap))
    blocks = padded.reshape(n, side, factor, side, factor, e)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, side * side, factor * factor * e)


class VilaConnector(nn.Module):
    """Patch features [n, p, e] -> visual tokens [n, q, h].

    linear: e -> h. mlp2x_gelu: e -> h -> GELU -> h. The downsample kinds first fold 2 x 2
    patches: downsample_linear: 4e -> h. mlp_downsample: LayerNorm -> 4e -> h -> GELU -> h.
    """

    def __init__(self, kind: str, tower_width: int, language_width: int) -> None:
        super().__init__()
        if kind not in _BLOCK_SIDE:
            raise ValueError(
                f"connector_kind is {kind!r}; it must be one of {', '.join(_BLOCK_SIDE)}."
            )
        self.factor = _BLOCK_SIDE[kind]
        width = tower_width * self.factor**2
        self.norm = nn.LayerNorm(width, eps=1e-5) if kind == "mlp_downsample" else None
        self.fc1 = nn.Linear(width, language_width)
        is_mlp = kind in ("mlp2x_gelu", "mlp_downsample")
        self.fc2 = nn.Linear(language_width, language_width) if is_mlp else None

    def forward(self, patches_npe: Tensor) -> Tensor:
        tokens = downsample_gather(patches_npe, self.factor) if self.factor > 1 else patches_npe
        if self.norm is not None:
            tokens = self.norm(tokens)
        tokens = self.fc1(tokens)
        if self.fc2 is not None:
            tokens = self.fc2(F.gelu(tokens))
        return tokens


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
        self.connector = VilaConnector(config.connector_kind, vision.hidden_size, text.hidden_size)
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

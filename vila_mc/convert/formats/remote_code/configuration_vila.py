"""Configuration of an exported VILA: a vision tower, a connector, a language model."""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class VilaConfig(PreTrainedConfig):
    """What ``VilaForConditionalGeneration`` is built from.

    Args:
        text_config: the language model: a config of transformers, or its dict.
        vision_config: the vision tower: a config of transformers, or its dict. It counts the
            layers that run: the layer after the one whose output is read does not exist.
        class_tokens: how many of the tower's tokens stand in front of the patches.
        connector_kind: which connector; connector_vila.py knows them.
        connector_options: its options by name, such as ``layers`` of mlpNx_gelu.
        image_token_id: placeholder of one visual token in ``input_ids``. It lies outside the
            vocabulary, so that no text contains it and the model never generates it.
    """

    model_type = "vila_mc"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        class_tokens: int = 1,
        connector_kind: str = "mlp_downsample",
        connector_options: dict[str, Any] | None = None,
        image_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = _as_config(text_config, "llama")
        self.vision_config = _as_config(vision_config, "clip_vision_model")
        self.class_tokens = class_tokens
        self.connector_kind = connector_kind
        self.connector_options = dict(connector_options or {})
        vocab_size = self.text_config.vocab_size
        self.image_token_id = vocab_size if image_token_id is None else image_token_id
        if self.image_token_id < vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} is a token of the vocabulary; use "
                f"{vocab_size} or more."
            )
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


def _as_config(given: Any, default: str) -> Any:
    """The config itself, or one made of its dict; of the ``default`` type where nothing says it."""
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(given or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)

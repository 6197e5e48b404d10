"""hf-llava: LlavaForConditionalGeneration, transformers' own class."""

import dataclasses
from pathlib import Path
from typing import Any

from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig
from vila_mc.convert.chat_template import FILE, jinja_of
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.pixels import preprocessor_json, read_pixels
from vila_mc.convert.families.registry import (
    language_from_hf,
    language_json,
    selected_layer,
    vision_from_hf,
    vision_json,
)
from vila_mc.convert.formats.export_source import ExportSource
from vila_mc.convert.formats.format import ForeignModel, Format
from vila_mc.convert.formats.model_card import model_card
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.formats.whole_directory import assemble_whole
from vila_mc.convert.names import (
    Naming,
    connector_rows,
    connector_table,
    unread_shapes,
    vision_table,
)
from vila_mc.convert.proof.reloaded import LoadedModel, Loading, TransformersModel, load_model
from vila_mc.convert.rename_tensors import their_shapes
from vila_mc.convert.transforms import BeforeIdentity, Row
from vila_mc.convert.weights import open_weights
from vila_mc.files import write_json

_HARMLESS = ("ignore_index", "image_seq_length", "tie_word_embeddings", "vocab_size")


_LAYERS = {"fc1": "linear_1", "fc2": "linear_2"}


def _before_identity(_: ModelConfig) -> tuple[Row, ...]:
    return (
        BeforeIdentity("connector.fc1.weight", "linear_1.weight", "h e", "linear_2.weight"),
        BeforeIdentity("connector.fc1.bias", "linear_1.bias", "h", "linear_2.bias"),
    )


def _two_layers(model: ModelConfig) -> tuple[Row, ...] | None:
    has_two = model.connector.layers == len(_LAYERS)
    return connector_rows(lambda _, name: _LAYERS[name])(model) if has_two else None


class _HfLlava:
    name: FormatName = "hf-llava"
    model_type = "llava"
    sees_images = True
    has_own_code = False
    says_token_order = True
    # As published checkpoints name it.
    naming = Naming(
        name,
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "language_model.",
        {
            "linear": _before_identity,
            "mlpNx_gelu": _two_layers,
        },
    )

    def write(self, source: ExportSource, directory: Path) -> None:
        model = source.model
        source.require_squares(self.name)
        # The placeholder is looked up in the embedding, so it needs a row there.
        image_token = source.tokenizer.image_token()
        rows = max(model.language.vocab_size, image_token + 1)
        parts = [
            vision_table(model.vision, self.naming.vision),
            connector_table(model, self.naming),
            source.language_part(self.naming.language, rows),
        ]
        source.write_weights(directory, parts, unread_shapes(model.vision, self.naming.vision))
        source.tokenizer.write(
            directory, model.language.max_positions, processor="LlavaProcessor", with_image=True
        )
        (directory / FILE).write_text(jinja_of(source.template), encoding="utf-8")
        write_json(directory / "config.json", self._config_json(source, image_token, rows))
        # Its row of the output layer is zeros, which must never win.
        generation = {**source.generation_json(), "suppress_tokens": [image_token]}
        write_json(directory / "generation_config.json", generation)
        write_json(directory / "preprocessor_config.json", _preprocessor_json(model))
        write_json(directory / "processor_config.json", _processor_json(model))
        card = model_card(model, their_shapes(parts), needs_remote_code=False)
        (directory / "README.md").write_text(card, encoding="utf-8")

    def _config_json(self, source: ExportSource, image_token: int, rows: int) -> dict[str, Any]:
        model, token_ids = source.model, source.token_ids()
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": self.model_type,
            "dtype": source.dtype_name(),
            "image_token_index": image_token,
            "image_seq_length": model.visual_tokens(),
            "projector_hidden_act": "linear" if model.connector.kind == "linear" else "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_layer": model.vision.select_layer,
            "vision_feature_select_strategy": _selection(model),
            "tie_word_embeddings": model.language.tied_embeddings,
            **token_ids,
            "text_config": language_json(model.language, rows) | dict(token_ids),
            "vision_config": vision_json(model.vision, model.vision.layers),
        }

    def read(
        self,
        directory: Path,
        config: ConfigValues,
        image_mode: ImageMode | None,
        *,
        trust_pickle: bool,
    ) -> ForeignModel:
        text = config.part("text_config")
        says_tied = text if text.has("tie_word_embeddings") else config
        tied = says_tied.flag("tie_word_embeddings")
        language = language_from_hf(text, tied=tied)
        rows = language.vocab_size
        if rows - 1 in (config.get("image_token_index"), config.get("image_token_id")):
            # The last row is the placeholder's, which is never looked up: not one of our tokens.
            with config.describing():
                language = dataclasses.replace(language, vocab_size=rows - 1)
        select_layer = selected_layer(config, "vision_feature_layer")
        vision = vision_from_hf(config.part("vision_config"), select_layer)
        vision = read_pixels(directory, vision, image_mode)
        config.require(
            "vision_feature_select_strategy",
            *(("default", None) if vision.facts().class_tokens else ("full",)),
        )
        config.require("multimodal_projector_bias", True, None)
        config.require("projector_hidden_act", "gelu", "linear", None)
        is_linear = config.get("projector_hidden_act") == "linear"
        config.refuse_others(_HARMLESS)
        connector = ConnectorConfig(kind="linear" if is_linear else "mlpNx_gelu")
        model = ModelConfig(vision=vision, connector=connector, language=language)
        tensors = {
            _published_name(name): tensor
            for name, tensor in open_weights(directory, trust_pickle=trust_pickle).items()
        }
        return assemble_whole(
            directory, model, tensors, self.naming, rows, trust_pickle=trust_pickle
        )

    def load(self, directory: Path, loading: Loading, vocab_size: int) -> LoadedModel:
        from transformers import LlavaForConditionalGeneration

        model = load_model(LlavaForConditionalGeneration, directory, loading, _bare_name)
        image_token = model.config.image_token_id
        return TransformersModel(model, vocab_size, image_token, loading.preprocessor(directory))


def _processor_json(model: ModelConfig) -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": model.vision.patch_size,
        "num_additional_image_tokens": model.vision.facts().class_tokens,
        "vision_feature_select_strategy": _selection(model),
    }


def _preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    is_pad = model.vision.image_mode == "pad"
    return {
        "image_processor_type": "LlavaImageProcessor" if is_pad else "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        **({"do_pad": True} if is_pad else {}),
        **preprocessor_json(model.vision),
    }


def _selection(model: ModelConfig) -> str:
    """LLaVA's name for dropping the class token, or for keeping everything."""
    return "default" if model.vision.facts().class_tokens else "full"


_INSIDE_TO_PUBLISHED = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.", ""),
)
"""Beginnings of names inside transformers 5, and in published files, which it still writes."""


def _published_name(name: str) -> str:
    for inside, published in _INSIDE_TO_PUBLISHED:
        if name.startswith(inside):
            return published + name.removeprefix(inside)
    return name


def _bare_name(name: str) -> str:
    """The published name, without the level that towers have lost since."""
    return _published_name(name).replace("vision_tower.vision_model.", "vision_tower.", 1)


FORMAT: Format = _HfLlava()

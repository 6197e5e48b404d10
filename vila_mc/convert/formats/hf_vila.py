"""hf-vila: our own modelling file and processor, for every connector (trust_remote_code)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vila_mc.config.connectors import CONNECTORS, OPTIONS, ConnectorConfig, ConnectorKind
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig
from vila_mc.config.options import build
from vila_mc.convert.chat_template import FILE, jinja_of
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.pixels import preprocessor_json, read_pixels, tiles_json
from vila_mc.convert.families.registry import (
    language_from_hf,
    language_json,
    selected_layer,
    vision_from_hf,
    vision_json,
)
from vila_mc.convert.formats.export_source import ExportSource, write_packaged
from vila_mc.convert.formats.format import ForeignModel, Format
from vila_mc.convert.formats.model_card import model_card
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.formats.whole_directory import assemble_whole
from vila_mc.convert.names import Naming, connector_rows, tables
from vila_mc.convert.proof.packaged_code import require_packaged_code
from vila_mc.convert.proof.reloaded import LoadedModel, Loading, TransformersModel, load_model
from vila_mc.convert.rename_tensors import their_shapes, vocabulary_rows
from vila_mc.convert.weights import open_weights
from vila_mc.data.chat_templates import Template
from vila_mc.files import write_json

_PACKAGED = (
    "configuration_vila.py",
    "connector_vila.py",
    "modeling_vila.py",
    "image_processing_vila.py",
    "processing_vila.py",
)


class _HfVila:
    name: FormatName = "hf-vila"
    model_type = "vila_mc"
    sees_images = True
    has_own_code = True
    says_token_order = True
    naming = Naming(
        name,
        "vision_tower.",
        "connector.",
        "language_model.",
        dict.fromkeys(CONNECTORS, connector_rows()),
    )

    def write(self, source: ExportSource, directory: Path) -> None:
        model = source.model
        parts = tables(model, self.naming, padded_vocab=vocabulary_rows(source.tensors))
        source.write_weights(directory, parts)
        source.tokenizer.write(
            directory, model.language.max_positions, processor="VilaProcessor", with_image=False
        )
        for name in _PACKAGED:
            write_packaged(directory, name)
        write_json(directory / "config.json", self._config_json(source))
        # Its processor reads the marks that ours makes, and no other template has.
        if isinstance(source.template, Template):
            (directory / FILE).write_text(jinja_of(source.template), encoding="utf-8")
        write_json(directory / "generation_config.json", source.generation_json())
        write_json(directory / "preprocessor_config.json", _preprocessor_json(model))
        write_json(directory / "processor_config.json", _processor_json(model))
        card = model_card(model, their_shapes(parts), needs_remote_code=True)
        (directory / "README.md").write_text(card, encoding="utf-8")

    def _config_json(self, source: ExportSource) -> dict[str, Any]:
        model, token_ids = source.model, source.token_ids()
        modeling = "modeling_vila.VilaForConditionalGeneration"
        return {
            "architectures": ["VilaForConditionalGeneration"],
            "auto_map": {
                "AutoConfig": "configuration_vila.VilaConfig",
                "AutoModel": modeling,
                "AutoModelForCausalLM": modeling,
                "AutoModelForImageTextToText": modeling,
            },
            "model_type": self.model_type,
            "dtype": source.dtype_name(),
            "class_tokens": model.vision.facts().class_tokens,
            "connector_kind": model.connector.kind,
            "connector_options": model.connector.options(),
            "vision_select_layer": model.vision.select_layer,
            "image_token_id": model.language.vocab_size,
            "tie_word_embeddings": model.language.tied_embeddings,
            **token_ids,
            "text_config": language_json(model.language) | dict(token_ids),
            "vision_config": vision_json(model.vision, model.vision.built_layers()),
        }

    def read(
        self,
        directory: Path,
        config: ConfigValues,
        image_mode: ImageMode | None,
        *,
        trust_pickle: bool,
    ) -> ForeignModel:
        language = language_from_hf(config.part("text_config"))
        select_layer = selected_layer(config, "vision_select_layer")
        # An export leaves out the layers that nobody reads.
        vision = vision_from_hf(config.part("vision_config"), select_layer, is_cut=True)
        vision = read_pixels(directory, vision, image_mode)
        tensors = open_weights(directory, trust_pickle=trust_pickle)
        connector = _read_connector(config)
        config.require("class_tokens", vision.facts().class_tokens, None)
        config.require("image_token_id", language.vocab_size, None)
        config.refuse_others(("auto_map", "tie_word_embeddings"))
        with config.describing():
            model = ModelConfig(vision=vision, connector=connector, language=language)
        return assemble_whole(directory, model, tensors, self.naming, trust_pickle=trust_pickle)

    def load(self, directory: Path, loading: Loading, vocab_size: int) -> LoadedModel:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not loading.trusts_code:
            require_packaged_code(directory)
        loading = replace(loading, trusts_code=True)
        model = load_model(AutoModelForImageTextToText, directory, loading)
        processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
        image_token = model.config.image_token_id
        preprocessor = loading.preprocessor(directory)
        return TransformersModel(model, vocab_size, image_token, preprocessor, processor)


def _read_connector(config: ConfigValues) -> ConnectorConfig:
    config.require("connector_kind", *get_args(ConnectorKind))
    options = config.part("connector_options")
    values = {name: options.get(name) for name in ("token_order", *OPTIONS) if options.has(name)}
    options.refuse_others()
    with config.describing():
        return build(ConnectorConfig, {"kind": config.get("connector_kind"), **values})


def _processor_json(model: ModelConfig) -> dict[str, Any]:
    return {
        "processor_class": "VilaProcessor",
        "auto_map": {"AutoProcessor": "processing_vila.VilaProcessor"},
        "image_seq_length": model.visual_tokens(),
        "image_token_id": model.language.vocab_size,
    }


def _preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "VilaImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_vila.VilaImageProcessor"},
        "processor_class": "VilaProcessor",
        "image_mode": model.vision.image_mode,
        **tiles_json(model.vision),
        **preprocessor_json(model.vision),
    }


FORMAT: Format = _HfVila()

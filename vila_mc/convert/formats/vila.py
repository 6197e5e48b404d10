"""vila: the directories that the public VILA code reads, one per part and a config above them.

transformers has no class for the whole. A proof puts it together from its parts, the connector by
formulas of its own.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.connectors import ConnectorConfig, ConnectorKind, TokenOrder
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig, VisionConfig
from vila_mc.convert.chat_template import jinja_of
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.pixels import preprocessor_json
from vila_mc.convert.families.registry import TOWERS, vision_json
from vila_mc.convert.families.vision import MOST_LAYERS
from vila_mc.convert.formats.export_source import ExportSource
from vila_mc.convert.formats.format import ForeignModel, Format, Origin
from vila_mc.convert.formats.llm import FORMAT as LLM
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.names import (
    Naming,
    Table,
    connector_rows,
    connector_table,
    unread_shapes,
    vision_table,
)
from vila_mc.convert.proof.reloaded import (
    LoadedModel,
    Loading,
    generate,
    load_model,
    load_tower,
    normalise,
)
from vila_mc.convert.read_parts import read_language, read_vision
from vila_mc.convert.rename_tensors import from_hf
from vila_mc.convert.transforms import Row
from vila_mc.convert.weights import open_weights, read_json
from vila_mc.files import write_json

LANGUAGE, VISION, CONNECTOR = "llm", "vision_tower", "mm_projector"
_ASPECTS: Mapping[ImageMode, str] = {"crop": "square", "pad": "pad", "resize": "resize"}
_CONNECTORS: tuple[ConnectorKind, ...] = (
    "linear",
    "mlpNx_gelu",
    "mlp_downsample",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)
"""Those that the public code has a name for."""
_OTHER_NAMES: Mapping[str, ConnectorKind] = {"mlp_downsample_2x2_fix": "mlp_downsample"}


def _rows(model: ModelConfig) -> tuple[Row, ...] | None:
    """Of its connector, which today's code computes row by row."""
    return connector_rows(_layer_of)(model) if model.connector.token_order == "rows" else None


def _layer_of(model: ModelConfig, name: str) -> str:
    """What the public code calls a layer: its place among all, those without weights too."""
    if model.connector.kind == "linear":
        return "layers"
    place = int(model.connector.facts().block > 1)  # folding comes first
    for layer in model.connector_layers():
        if layer.name == name:
            break
        place += 1 if layer.is_norm else 2  # GELU follows a linear layer
    return f"layers.{place}"


class _Vila:
    name: FormatName = "vila"
    model_type = "llava_llama"
    sees_images = True
    has_own_code = False
    says_token_order = False
    naming = Naming(name, "vision_model.", "", "", dict.fromkeys(_CONNECTORS, _rows))

    def write(self, source: ExportSource, directory: Path) -> None:
        model = source.model
        source.require_squares(self.name)
        connector = connector_table(model, self.naming)  # refuses before anything is written
        for name in (LANGUAGE, VISION, CONNECTOR):
            (directory / name).mkdir()
        LLM.write(source, directory / LANGUAGE)
        _tell_chat_template(directory / LANGUAGE, jinja_of(source.template))
        configs = {LANGUAGE: read_json(directory / LANGUAGE / "config.json")}
        tower = directory / VISION
        unread = unread_shapes(model.vision, self.naming.vision)
        source.write_weights(tower, [vision_table(model.vision, self.naming.vision)], unread)
        configs[VISION] = vision_json(model.vision, model.vision.layers) | {
            "dtype": source.dtype_name()
        }
        write_json(tower / "config.json", configs[VISION])
        write_json(tower / "preprocessor_config.json", _preprocessor_json(model))
        source.write_weights(directory / CONNECTOR, [connector])
        configs[CONNECTOR] = {
            "architectures": ["MultimodalProjector"],
            "model_type": "v2l_projector",
            "mm_projector_type": _projector_type(model.connector),
            "dtype": source.dtype_name(),
        }
        write_json(directory / CONNECTOR / "config.json", configs[CONNECTOR])
        config = self._config_json(source) | {f"{part}_cfg": configs[part] for part in configs}
        write_json(directory / "config.json", config)

    def _config_json(self, source: ExportSource) -> dict[str, Any]:
        model = source.model
        return {
            "architectures": ["LlavaLlamaModel"],
            "model_type": self.model_type,
            # Its loader goes on only where this is set; it looks for the parts beside the file.
            "resume_path": "./",
            "hidden_size": model.language.width,
            "mm_hidden_size": model.vision.width,
            "image_aspect_ratio": _ASPECTS[model.vision.image_mode],
            "mm_vision_select_layer": model.vision.select_layer,
            "mm_vision_select_feature": select_feature(model.vision),
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            # Without this the newer loader puts a newline after every image.
            "image_encoder": {
                "_target_": "llava.model.encoders.BasicImageEncoder",
                "end_tokens": None,
            },
            "model_dtype": f"torch.{source.dtype_name()}",
        }

    def read(
        self,
        directory: Path,
        config: ConfigValues,
        image_mode: ImageMode | None,
        *,
        trust_pickle: bool,
    ) -> ForeignModel:
        for switch in _SWITCHES:
            config.require(switch, False, None)
        config.require("num_time_tokens", 0, None)
        config.require("image_aspect_ratio", "resize", "pad", "square", None)
        newline = _read_image_encoder(config)
        aspect = config.get("image_aspect_ratio")
        given: ImageMode = aspect if aspect in ("resize", "pad") else "crop"
        language, language_tensors = read_language(directory / LANGUAGE, trust_pickle=trust_pickle)
        vision, vision_tensors = read_vision(
            directory / VISION,
            image_mode or given,
            select_layer=config.from_the_end("mm_vision_select_layer", MOST_LAYERS),
            trust_pickle=trust_pickle,
        )
        config.require("mm_vision_select_feature", select_feature(vision))
        config.require("vision_resolution", vision.image_size, -1, None)
        config.refuse_others(_HARMLESS)
        projector = directory / CONNECTOR
        where = projector / "config.json"
        projector_config = ConfigValues(read_json(where), where)
        connector = _read_connector(projector_config, is_old=not config.has("image_encoder"))
        model = ModelConfig(vision=vision, connector=connector, language=language)
        projector_tensors = open_weights(projector, trust_pickle=trust_pickle)
        joined = from_hf(projector_tensors, [_table(model)], str(projector))
        projector_config.refuse_others()
        found = self.name + _said_of_order(connector) + newline
        origin = Origin(
            {self.name: directory},
            directory / VISION,
            squares_first=aspect if aspect in ("resize", "pad") else None,
            trust_pickle=trust_pickle,
        )
        tensors = vision_tensors | joined | language_tensors
        return ForeignModel(model, tensors, directory / LANGUAGE, found, origin)

    def load(self, directory: Path, loading: Loading, vocab_size: int) -> LoadedModel:
        return _LoadedParts(directory, loading, vocab_size)


def _projector_type(connector: ConnectorConfig) -> str:
    return connector.kind.replace("Nx", f"{connector.layers}x")


def _read_connector(config: ConfigValues, *, is_old: bool) -> ConnectorConfig:
    """The connector that ``mm_projector_type`` names.

    The release of 2024-12-12 turned the order of mlp_downsample's tokens, under the same name, and
    brought image encoders: a config without one is of earlier code.

    Raises:
        CheckpointError: there is no such one.
    """
    key = "mm_projector_type"
    given = config.get(key)
    if isinstance(given, str) and (match := _MLP.fullmatch(given)):
        return ConnectorConfig(kind="mlpNx_gelu", layers=int(match["layers"]))
    named = [kind for kind in _CONNECTORS if kind != "mlpNx_gelu"]
    config.require(key, *named, *_OTHER_NAMES)
    order: TokenOrder = "columns" if given == "mlp_downsample" and is_old else "rows"
    return ConnectorConfig(kind=_OTHER_NAMES.get(given, given), token_order=order)


_MLP = re.compile(r"mlp(?P<layers>[1-9]\d?)x_gelu")


def _table(model: ModelConfig) -> Table:
    """Rows of the connector of a directory that is read, of either age."""
    connector = replace(model.connector, token_order="rows")
    return connector_table(replace(model, connector=connector), FORMAT.naming)


def _said_of_order(connector: ConnectorConfig) -> str:
    if connector.kind != "mlp_downsample":
        return ""
    age = "before" if connector.token_order == "columns" else "since"
    return f" (visual tokens by {connector.token_order}, as the public code {age} 2024-12-12)"


_NEWLINE = " (its code puts a newline after every image: so must prompts)"
_SWITCHES = (
    "dynamic_s2",
    "high_res_pos_embed",
    "mm_use_im_patch_token",
    "mm_use_im_start_end",
    "ps3",
    "s2",
)
"""Switches for other features, or for other tokens around an image."""
_HARMLESS = """
    chat_template drop_path_rate fps hidden_size interpolate_mode llm_cfg look_close_mode max_tiles
    min_tiles mm_hidden_size mm_low_res_token_num mm_projector_cfg mm_projector_lr mm_scale_num
    model_dtype num_look_close num_token_look_close num_video_frames ps3_dynamic_aspect_ratio
    resume_path s2_max_split_size s2_resize_output_to_scale_idx s2_scales soft_ce_std
    time_token_format time_token_ids top_down_prompt_head_type tune_language_model
    tune_mm_projector tune_vision_tower version video_encoder video_max_tiles vision_tower_cfg
    vision_tower_lr
""".split()  # noqa: SIM905
"""Videos, training, and what counts only where one of the switches is on."""


def _read_image_encoder(config: ConfigValues) -> str:
    """What is to be said of the tokens around an image. Raises CheckpointError."""
    given = config.get("image_encoder")
    if given is None:  # before there were encoders, nothing stood around an image
        return ""
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise config.refusal("image_encoder", "a JSON object is needed.")
    encoder = ConfigValues(values, config.where, {"end_tokens": "\n"}, "image_encoder.")
    encoder.require("_target_", "llava.model.encoders.BasicImageEncoder")
    encoder.require("start_tokens", None)
    encoder.require("end_tokens", "\n", None)
    encoder.refuse_others()
    return "" if encoder.get("end_tokens") is None else _NEWLINE


def select_feature(vision: VisionConfig) -> str:
    """The public code's name for every patch: it drops the first token of a tower, or keeps it."""
    return "patch" if vision.facts().class_tokens else "cls_patch"


def _preprocessor_json(model: ModelConfig) -> dict[str, Any]:
    kind = TOWERS[model.vision.family].image_processor
    return {"image_processor_type": kind, **preprocessor_json(model.vision)}


def _tell_chat_template(directory: Path, template: str) -> None:
    """Where the transformers of the public code looks for it, which reads no file of its own."""
    where = directory / "tokenizer_config.json"
    write_json(where, {**read_json(where), "chat_template": template})


class _LoadedParts:
    """The parts loaded by transformers, the connector computed from its published description."""

    processor = None

    def __init__(self, directory: Path, loading: Loading, vocab_size: int) -> None:
        from transformers import AutoModelForCausalLM

        self.vocab_size = vocab_size
        self.model = load_model(AutoModelForCausalLM, directory / LANGUAGE, loading)
        tower = directory / VISION
        self._tower = load_tower(tower, loading)
        self._preprocessor = loading.preprocessor(tower)
        config = read_json(directory / "config.json")
        self._select = config["mm_vision_select_layer"]
        # As the public code does it, whatever the tower is.
        self._first_patch = 1 if config["mm_vision_select_feature"] == "patch" else 0
        projector = directory / CONNECTOR
        self._kind = read_json(projector / "config.json")["mm_projector_type"]
        is_old = self._kind == "mlp_downsample" and config.get("image_encoder") is None
        self._order = loading.token_order or ("columns" if is_old else "rows")
        self._layers = {
            name: loading.rounded(tensor.read()).float()
            for name, tensor in open_weights(projector, trust_pickle=loading.trust_pickle).items()
        }

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=self._embed(token_ids, images)).logits
        return logits

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        embeds = self._embed(token_ids, images)
        return generate(self.model, token_ids, length, inputs_embeds=embeds)

    def _embed(self, token_ids: Tensor, images: Tensor) -> Tensor:
        is_image = token_ids == self.vocab_size
        embeds: Tensor = self.model.get_input_embeddings()(token_ids.masked_fill(is_image, 0))
        if len(images):
            pixels = normalise(images, self._preprocessor)
            states = self._tower(pixels, output_hidden_states=True).hidden_states[self._select]
            embeds[is_image] = self._connect(states[:, self._first_patch :]).flatten(0, 1)
        return embeds

    def _connect(self, patches: Tensor) -> Tensor:
        """Weights of one axis are a LayerNorm's; after every linear layer but the last is GELU."""
        x = patches
        if "downsample" in self._kind:
            x = _blocks(patches, 3 if "3x3" in self._kind else 2)
        names = {name.rpartition(".")[0] for name in self._layers}
        *others, last = sorted(names, key=lambda name: int(name.partition(".")[2] or 0))
        for name in (*others, last):
            weight, bias = self._layers[f"{name}.weight"], self._layers[f"{name}.bias"]
            if weight.dim() == 1:
                x = F.layer_norm(x, weight.shape, weight, bias)
            else:
                x = F.linear(x, weight, bias)
                x = x if name == last else F.gelu(x)
        if self._order == "columns":
            side = math.isqrt(x.shape[1])
            x = x.reshape(len(x), side, side, -1).transpose(1, 2).flatten(1, 2)
        return x


def _blocks(patches: Tensor, factor: int) -> Tensor:
    """Blocks of patches side by side, each row by row; outside the grid are zeros."""
    side = math.isqrt(patches.shape[1])
    grid = patches.reshape(len(patches), side, side, -1)
    missing = -side % factor
    grid = F.pad(grid, (0, 0, 0, missing, 0, missing))
    places = [grid[:, y::factor, x::factor] for y in range(factor) for x in range(factor)]
    return torch.cat(places, dim=-1).flatten(1, 2)


FORMAT: Format = _Vila()

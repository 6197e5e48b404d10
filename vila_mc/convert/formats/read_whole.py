"""Published models as training states: a whole VILA or LLaVA, or parts put together anew."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors, lazily
from vila_mc.config.families import ImageMode
from vila_mc.config.model import (
    ConnectorConfig,
    ConnectorKind,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import language_from_hf, vision_from_hf
from vila_mc.convert.families.vision import image_mode_of
from vila_mc.convert.formats.configs import MODEL_TYPE, official_selection
from vila_mc.convert.names import (
    LLAVA_CONNECTORS,
    OFFICIAL_CONNECTORS,
    OUR_CONNECTORS,
    Naming,
    connector_table,
)
from vila_mc.convert.read_parts import (
    join_language,
    join_vision,
    read_language,
    read_vision,
    within,
)
from vila_mc.convert.rename_tensors import check_tensors, from_hf
from vila_mc.convert.weights import open_weights, read_json
from vila_mc.errors import CheckpointError

WHOLE_MODELS = (MODEL_TYPE, "llava", "llava_llama")
"""``model_type`` of what ``read_whole`` reads."""

_TOKEN_ORDER = " (tokens row by row; weights from before late 2024 expect them by columns)"
"""Said because no file says which; see docs/checkpoints.md."""


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A whole model found in Hugging Face directories."""

    model: ModelConfig
    tensors: dict[str, LazyTensor]
    """Every parameter of the whole model by its training name."""
    tokenizer_dir: Path
    """Where its tokenizer's files are."""
    kind: str
    """What it was, for people."""

    def is_bf16(self) -> bool:
        """Whether bf16 holds every weight as it is."""
        return all(tensor.dtype == torch.bfloat16 for tensor in self.tensors.values())


def read_whole(
    directory: Path, image_mode: ImageMode | None = None, *, trust_pickle: bool = False
) -> ForeignModel:
    """One of our exports, a LLaVA-1.5 of transformers, or a directory of the public VILA code.

    Args:
        directory: holds a config.json of one of these.
        image_mode: how images become square; as the directory says if None.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported.
    """
    where = directory / "config.json"
    config = ConfigValues(read_json(where), where)
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        return _read_export(directory, config, image_mode)
    if kind == "llava":
        return _read_llava(directory, config, image_mode, trust_pickle)
    if kind == "llava_llama":
        return _read_official(directory, config, image_mode, trust_pickle)
    raise CheckpointError(
        f"{where}: model_type is {kind}; a whole model is one of {', '.join(WHOLE_MODELS)}. Give a "
        "language model with --llm and a vision tower with --vision to put them together."
    )


def combine(
    llm: Path,
    vision: Path,
    connector: ConnectorKind,
    image_mode: ImageMode | None = None,
    *,
    seed: int = 42,
    trust_pickle: bool = False,
) -> ForeignModel:
    """A language model and a vision tower with a new connector between.

    Args:
        llm: directory of a Llama, Mistral or Qwen2.
        vision: directory of a CLIP or SigLIP.
        connector: what to put between them.
        image_mode: how images become square; as the tower's makers do it if None.
        seed: decides the weights of the connector.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported.
    """
    language_config, language = read_language(llm, trust_pickle=trust_pickle)
    vision_config, tower = read_vision(vision, image_mode, trust_pickle=trust_pickle)
    model = ModelConfig(
        vision=vision_config,
        connector=ConnectorConfig(kind=connector),
        language=language_config,
    )
    # bf16 parts make a bf16 model; other formats are widened to fp32 when they are stored.
    parts = tower | language
    is_bf16 = all(tensor.dtype == torch.bfloat16 for tensor in parts.values())
    fresh = lazily(_fresh_connector(model, seed, torch.bfloat16 if is_bf16 else torch.float32))
    kind = f"{language_config.family} + {vision_config.family} + a new {connector}"
    return ForeignModel(model, tower | fresh | language, llm, kind)


def _fresh_connector(model: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Linear layers as torch starts them, norms that change nothing."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    fan_in = 1
    for name, shape in connector_table(model).our_shapes().items():
        if ".norm." in name:
            state[name] = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
            continue
        fan_in = shape[1] if len(shape) == 2 else fan_in  # a bias follows its weight
        drawn = torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        state[name] = drawn.to(dtype)
    return state


def _read_export(
    directory: Path, config: ConfigValues, image_mode: ImageMode | None
) -> ForeignModel:
    where = directory / "preprocessor_config.json"
    preprocessor = ConfigValues(read_json(where), where)
    language = language_from_hf(config.part("text_config"))
    given = image_mode or preprocessor.get("image_mode")
    vision = vision_from_hf(config.part("vision_config"), given)
    # The export leaves out the layer that nobody reads.
    vision = dataclasses.replace(vision, layers=vision.layers + 1)
    tensors = open_weights(directory)
    parts = _divide(
        directory,
        tensors,
        vision="vision_tower.",
        connector="connector.",
        language="language_model.",
    )
    connector = _kind(config, "connector_kind", tuple(OUR_CONNECTORS))
    model = _model(vision, connector, language)
    naming = Naming("", "", "", OUR_CONNECTORS)
    return _assemble(directory, model, parts, naming, "an export of ours")


def _read_llava(
    directory: Path, config: ConfigValues, image_mode: ImageMode | None, trust_pickle: bool
) -> ForeignModel:
    text = config.part("text_config")
    tied = text.get("tie_word_embeddings")
    language = language_from_hf(
        text, tied=bool(config.get("tie_word_embeddings") if tied is None else tied)
    )
    rows = language.vocab_size
    if config.get("image_token_index") == rows - 1:
        # The last row is the placeholder's, which is never looked up here: not one of our tokens.
        language = dataclasses.replace(language, vocab_size=rows - 1)
    vision_part = config.part("vision_config")
    if image_mode is None:
        image_mode = _llava_image_mode(directory)
    vision = vision_from_hf(vision_part, image_mode)
    config.require("vision_feature_layer", -2, None)
    config.require(
        "vision_feature_select_strategy",
        *(("default", None) if vision.facts().class_tokens else ("full",)),
    )
    config.require("multimodal_projector_bias", True, None)
    config.require("projector_hidden_act", "gelu", "linear", None)
    is_linear = config.get("projector_hidden_act") == "linear"
    model = _model(vision, "linear" if is_linear else "mlp2x_gelu", language)
    tensors = {
        _published_name(name): tensor
        for name, tensor in open_weights(directory, trust_pickle=trust_pickle).items()
    }
    parts = _divide(
        directory,
        tensors,
        vision="vision_tower.",
        connector="multi_modal_projector.",
        language="language_model.",
    )
    naming = Naming("", "", "", LLAVA_CONNECTORS)
    return _assemble(directory, model, parts, naming, "a LLaVA of transformers", rows)


def _llava_image_mode(directory: Path) -> ImageMode:
    """As the preprocessor says; one that is absent is CLIP's."""
    where = directory / "preprocessor_config.json"
    return image_mode_of(ConfigValues(read_json(where), where)) if where.exists() else "crop"


def _published_name(name: str) -> str:
    """Names inside transformers 5 -> those of published files, which it still writes."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    return name.removeprefix("model.")


def _read_official(
    directory: Path, config: ConfigValues, image_mode: ImageMode | None, trust_pickle: bool
) -> ForeignModel:
    config.require("mm_vision_select_layer", -2)
    config.require("s2", False, None)
    config.require("dynamic_s2", False, None)
    config.require("image_aspect_ratio", "resize", "pad", "square", None)
    aspect = config.get("image_aspect_ratio")
    if image_mode is None:
        image_mode = aspect if aspect in ("resize", "pad") else "crop"
    language, language_tensors = read_language(directory / "llm", trust_pickle=trust_pickle)
    vision, vision_tensors = read_vision(
        directory / "vision_tower", image_mode, trust_pickle=trust_pickle
    )
    config.require("mm_vision_select_feature", official_selection(vision))
    projector = directory / "mm_projector"
    where = projector / "config.json"
    kinds = tuple(OFFICIAL_CONNECTORS)
    connector = _kind(ConfigValues(read_json(where), where), "mm_projector_type", kinds)
    model = _model(vision, connector, language)
    table = connector_table(model, Naming("", "", "", OFFICIAL_CONNECTORS))
    tensors = open_weights(projector, trust_pickle=trust_pickle)
    joined = from_hf(tensors, [table], str(projector))
    return ForeignModel(
        model,
        vision_tensors | joined | language_tensors,
        directory / "llm",
        "a directory of the public VILA code" + (_TOKEN_ORDER if "downsample" in connector else ""),
    )


def _kind(config: ConfigValues, key: str, kinds: tuple[ConnectorKind, ...]) -> ConnectorKind:
    config.require(key, *kinds)
    kind: ConnectorKind = config.get(key)
    assert kind in get_args(ConnectorKind)
    return kind


def _model(vision: VisionConfig, connector: ConnectorKind, language: LanguageConfig) -> ModelConfig:
    return ModelConfig(vision=vision, connector=ConnectorConfig(kind=connector), language=language)


def _assemble(
    directory: Path,
    model: ModelConfig,
    parts: dict[str, LazyTensors],
    naming: Naming,
    kind: str,
    placed_vocab: int | None = None,
) -> ForeignModel:
    table = connector_table(model, naming)
    tensors = join_vision(parts["vision"], model.vision, f"{directory} (vision)")
    tensors |= from_hf(parts["connector"], [table], f"{directory} (connector)")
    tensors |= join_language(
        parts["language"], model.language, f"{directory} (language)", placed_vocab
    )
    return ForeignModel(model, tensors, directory, kind)


def _divide(directory: Path, tensors: LazyTensors, **prefixes: str) -> dict[str, LazyTensors]:
    """Tensors by part; one that belongs to no part is refused. Raises CheckpointError."""
    parts: dict[str, LazyTensors] = {
        part: within(tensors, prefix) for part, prefix in prefixes.items()
    }
    claimed = tuple(prefixes.values())
    expected = {name: t.shape for name, t in tensors.items() if name.startswith(claimed)}
    check_tensors(tensors, expected, str(directory))
    return parts

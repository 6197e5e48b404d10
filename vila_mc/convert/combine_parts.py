"""A language model and a vision tower, each published on its own, with a new connector between."""

from pathlib import Path

import torch

from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.connectors import TABLE_STD, ConnectorConfig, ConnectorKind
from vila_mc.config.families import ImageMode
from vila_mc.config.model import ModelConfig
from vila_mc.convert.families.vision import DEFAULT_LAYER
from vila_mc.convert.formats.format import ForeignModel, Origin
from vila_mc.convert.grow_vocabulary import grown
from vila_mc.convert.read_parts import at_image_size, read_language, read_vision


def combine_parts(
    llm: Path,
    vision: Path,
    connector: ConnectorConfig | ConnectorKind,
    image_mode: ImageMode | None = None,
    *,
    select_layer: int = DEFAULT_LAYER,
    image_size: int | None = None,
    seed: int = 42,
    trust_pickle: bool = False,
) -> ForeignModel:
    """A language model and a vision tower with a new connector between.

    The vocabulary grows where the tokenizer beside the language model has more tokens.

    Args:
        llm: directory of a Llama, Mistral, Qwen2 or Qwen3.
        vision: directory of a CLIP or SigLIP.
        connector: what to put between them; a kind stands for it with its default options.
        image_mode: how images become square; as the tower's makers do it if None.
        select_layer: the layer of the tower that features come from, counted from the end.
        image_size: side of the images, in pixels; that of the tower if None. Its position
            embeddings are interpolated to another.
        seed: decides the weights of the connector.
        trust_pickle: whether weights may be read from ``.bin`` files.

    Raises:
        CheckpointError: something is missing, damaged, or not supported.
        ConfigError: the tower cannot see images of that size.
    """
    language_config, language = read_language(llm, trust_pickle=trust_pickle)
    vision_config, tower = read_vision(
        vision, image_mode, select_layer=select_layer, trust_pickle=trust_pickle
    )
    origin = Origin(
        {"llm": llm, "tower": vision},
        vision,
        image_size=vision_config.image_size,
        trust_pickle=trust_pickle,
    )
    if image_size is not None:
        vision_config, tower = at_image_size(vision_config, tower, image_size)
    if isinstance(connector, str):
        connector = ConnectorConfig(kind=connector)
    model = ModelConfig(vision=vision_config, connector=connector, language=language_config)
    # bf16 parts make a bf16 model; other formats are widened to fp32 when they are stored.
    parts = tower | language
    is_bf16 = all(tensor.dtype == torch.bfloat16 for tensor in parts.values())
    fresh = lazily(_fresh_connector(model, seed, torch.bfloat16 if is_bf16 else torch.float32))
    kind = f"{language_config.family} + {vision_config.family} + a new {connector.title()}"
    return grown(ForeignModel(model, tower | fresh | language, llm, kind, origin))


def _fresh_connector(model: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Linear layers as torch starts them, norms that change nothing, tables as BLIP-2's."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for layer in model.connector_layers():
        at, bound = f"connector.{layer.name}", layer.shape[-1] ** -0.5
        for part, shape in layer.parameters().items():
            if layer.is_table:
                values = torch.empty(shape).normal_(std=TABLE_STD, generator=generator)
            elif layer.is_norm:
                values = torch.full(shape, float(part == "weight"))
            else:
                values = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            state[f"{at}.{part}"] = values.to(dtype)
    return state

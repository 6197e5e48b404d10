"""Model directories as strangers may have written them, before all that reads their JSON."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch

from tests.support.foreign_fuzz import Door, damaged_json
from tests.support.tiny import tiny_run
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.describe import describe
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.read_parts import read_language, read_vision
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.topology.shapes import model_parameters

_LIKELY: tuple[Any, ...] = (
    *("false", "True", "1e-5", "silu", "pad", "crop", "linear", "yarn", "gelu", "llama", "clip"),
    *(10**9, 10**30, 2.5, 1e-45, -2, 3, 7, 28, 64, 0.5, float("inf"), False, [64, 64], [0.5] * 3),
    *({"type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2}, {"height": 28}),
)
_KEYS = (
    *("rope_scaling", "rope_parameters", "head_dim", "layer_types", "sliding_window", "auto_map"),
    *("do_pad", "do_resize", "size", "image_mode", "image_encoder", "s2", "vision_resolution"),
    *("tie_word_embeddings", "quantization_config", "image_token_index", "vision_config_dict"),
)


def make_models(folder: Path) -> None:
    """A whole model in every format; ``vila`` has its parts in directories of their own."""
    language = dict(
        layers=1, width=32, ffn=48, heads=4, kv_heads=2, vocab_size=320, max_positions=64
    )
    vision = dict(image_size=28, patch_size=7, width=16, layers=2, heads=2, ffn=24)
    model = tiny_run(
        model={"vision": vision, "language": language, "connector": {"kind": "mlp2x_gelu"}},
        data={"sequence_length": 64},
    ).model
    tokenizer = folder / "tokenizer.model"
    train_tokenizer([f"hello the quick brown world {n}" for n in range(100)], tokenizer, 320)
    state = lazily({each.name: torch.zeros(each.shape) for each in model_parameters(model)})
    for format in ("hf-vila", "hf-llava", "vila"):
        write_export(state, model, tokenizer, folder / format, torch.float32, 20_000, format)


def _damaged(choose: random.Random, content: bytes) -> bytes:
    """Any JSON in the place of a value, or a value that is likely in the wrong place."""
    if choose.random() < 0.5:
        return damaged_json(choose, content)
    values = json.loads(content)
    owner = values
    while (parts := [each for each in owner.values() if isinstance(each, dict) and each]) and (
        choose.random() < 0.7
    ):
        owner = choose.choice(parts)
    key = choose.choice([*owner, *_KEYS])
    owner[key] = copy.deepcopy(choose.choice([*_LIKELY, *owner.values()]))
    return json.dumps(values).encode()


def _whole(file: Path) -> None:
    list(describe(file.parent))
    read_whole(file.parent)


MODEL_DOORS = {
    "config.json of a language model": Door(
        "vila/llm/config.json", lambda file: read_language(file.parent), _damaged
    ),
    "config.json of a tower": Door(
        "vila/vision_tower/config.json", lambda file: read_vision(file.parent), _damaged
    ),
    "preprocessor_config.json": Door(
        "vila/vision_tower/preprocessor_config.json",
        lambda file: read_vision(file.parent),
        _damaged,
    ),
    "config.json of a connector": Door(
        "vila/mm_projector/config.json", lambda file: read_whole(file.parents[1]), _damaged
    ),
    "index of weights": Door(
        "vila/llm/model.safetensors.index.json", lambda file: read_language(file.parent), _damaged
    ),
    **{
        f"config.json of {format}": Door(f"{format}/config.json", _whole, _damaged)
        for format in ("hf-vila", "hf-llava", "vila")
    },
    **{
        f"preprocessor of {format}": Door(f"{format}/preprocessor_config.json", _whole, _damaged)
        for format in ("hf-vila", "hf-llava")
    },
}

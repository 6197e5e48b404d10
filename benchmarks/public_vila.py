"""Exports of `--format vila`, loaded and run by the public VILA code itself.

Tiny random models go through a training checkpoint into the public layout. The public code loads
them with its own builder in an environment of its own, computes, and saves them again, which is
imported here. Weights are numbers that fp16, which its builder always takes, holds exactly. Not
run: its generation, its image processors, and whatever needs a GPU (see public_vila_reader.py).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file
from torch import Tensor

from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.connectors import ConnectorConfig, ConnectorKind
from vila_mc.config.model import (
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.format import ForeignModel, Origin
from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.names import tables
from vila_mc.convert.proof.reference import proving_model, reference_of
from vila_mc.convert.rename_tensors import from_hf, their_shapes, to_hf
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.kernels.reference import normalize_images

READER = Path(__file__).with_name("public_vila_reader.py")
VOCABULARY = 401  # odd, so that training's tables have padding rows
TOLERANCE = 1e-5
INSIDE = replace(
    find_format("vila").naming,
    vision="vision_tower.vision_tower.vision_model.",
    connector="mm_projector.",
    language="llm.",
)
"""Where the public model has its parts."""
_CLIP = VisionConfig(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=48)
_ODD = replace(_CLIP, image_size=21)
_SIGLIP = replace(_ODD, family="siglip", image_size=23, image_mode="resize")
_LLAMA = LanguageConfig(
    layers=2, width=64, ffn=88, heads=4, kv_heads=2, vocab_size=VOCABULARY, max_positions=128
)
_QWEN2 = replace(_LLAMA, family="qwen2", tied_embeddings=True)
_LINEAR = RopeConfig(scaling="linear", factor=4.0)
_LLAMA3 = RopeConfig(scaling="llama3", factor=8.0, original_positions=32)
MODELS: dict[str, tuple[LanguageConfig, VisionConfig, ConnectorKind]] = {
    "Mistral, CLIP, linear": (replace(_LLAMA, family="mistral"), _CLIP, "linear"),
    "Llama 3.1, CLIP, mlp2x_gelu": (replace(_LLAMA, rope=_LLAMA3), _CLIP, "mlp2x_gelu"),
    "Vicuna 16k, CLIP, mlp_downsample": (replace(_LLAMA, rope=_LINEAR), _ODD, "mlp_downsample"),
    "Qwen2, SigLIP, mlp_downsample": (_QWEN2, _SIGLIP, "mlp_downsample"),
}


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--vila", type=Path, required=True, help="a checkout of the code")
    arguments_parser.add_argument("--python", required=True, help="interpreter with what it needs")
    arguments = arguments_parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="public-vila-") as folder:
        return report(measure(Path(folder), arguments), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> list[Claim]:
    """Export every model, let the public code read and save it, import that."""
    generator = random.Random(1)
    words = (generator.randbytes(20).hex() for _ in range(999))
    train_tokenizer(words, folder / "tokenizer.model", VOCABULARY)
    weights = {}
    for number, (language, vision, kind) in enumerate(MODELS.values()):
        model = ModelConfig(vision=vision, connector=ConnectorConfig(kind=kind), language=language)
        weights[folder / str(number)] = export(model, folder / str(number), number)
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    subprocess.run(
        [arguments.python, READER, arguments.vila, *weights],
        env={**environment, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=sys.stderr,
        check=True,
    )
    count = sum(map(len, weights.values()))
    claims = [Claim("weights compared, over all models", count, "tensors")]
    for name, (path, given) in zip(MODELS, weights.items(), strict=True):
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        surplus = num_different(given, imported(path / "saved"))
        claims += [
            Claim(
                f"{name}: weights that differ in its memory", result["different"], "", 0, "lower"
            ),
            Claim(f"{name}: largest logit difference", result["max"], "", TOLERANCE, "lower"),
            Claim(f"{name}: weights that differ, saved by it, imported", surplus, "", 0, "lower"),
        ]
    return claims


def export(model: ModelConfig, folder: Path, seed: int) -> dict[str, Tensor]:
    """Write ``export`` and ``reference.safetensors``; returns weights by their public names."""
    generator = torch.Generator().manual_seed(seed)
    parts = tables(model, INSIDE)
    weights = {
        name: (torch.randn(shape, generator=generator) * 0.1 + float("norm" in name)).half().float()
        for name, shape in their_shapes(parts).items()
    }
    folder.mkdir()
    tensors = from_hf(lazily(weights), parts, "random")
    source = ForeignModel(model, tensors, folder, "random", Origin({}, folder))
    import_checkpoint(source, folder / "ours")
    tokenizer = folder.parent / "tokenizer.model"
    export_checkpoint(folder / "ours", folder / "export", "vila", tokenizer=tokenizer)
    with proving_model(folder / "ours", torch.float32) as proving:
        reference = reference_of(proving)
    mean, std = model.vision.resolved_channel_mean(), model.vision.resolved_channel_std()
    pixels = normalize_images(reference.images, torch.float32, mean, std).contiguous()
    logits = reference.logits[..., :VOCABULARY].contiguous()
    assert logits.std() > 0.1, "a comparison of zeros proves nothing"
    given = {"token_ids": reference.token_ids, "pixels": pixels, "logits": logits}
    save_file(
        given | {f"weight.{n}": w for n, w in weights.items()}, folder / "reference.safetensors"
    )
    return weights


def imported(directory: Path) -> dict[str, Tensor]:
    """Weights of a directory that the public code wrote, by their public names."""
    source = read_whole(directory)
    padded = source.model.language.padded_vocab()
    return dict(to_hf(source.tensors, tables(source.model, INSIDE, padded_vocab=padded)))


def num_different(given: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> int:
    """Weights that are missing, or differ in any bit; rows for tokens of its own are not ours."""
    return sum(
        name not in found or not torch.equal(weight, found[name][: len(weight)].float())
        for name, weight in given.items()
    )


if __name__ == "__main__":
    sys.exit(main())

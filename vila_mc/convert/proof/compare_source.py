"""Prove an import: load its source in a fresh process and compare what the two compute.

A checkpoint can hold every tensor of its source and still be another model: a key of the config
that was read wrongly, a projection in the place of another, pixels on another scale. So the
source is loaded by transformers (or, where it has no class for it, by the format's own formulas),
offline, and compared with the checkpoint: logits, features of the tower, the pixels of the
source's own image processor, the tokens of its own tokenizer.
"""

import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.proof.fresh_request import FreshRequest, answers_of_fresh_process
from vila_mc.convert.proof.reference import (
    ProvingModel,
    features_of,
    image_token_of,
    proving_model,
    reference_of,
)
from vila_mc.convert.proof.reloaded import Loading
from vila_mc.data.images import load_squares
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError
from vila_mc.kernels.reference import normalize_images
from vila_mc.model.megatron_config import DTYPES

MAX_DIFFERENCE, MEAN_DIFFERENCE = 1e-3, 1e-4
"""Largest and mean difference of logits and features, relative to 1 + their size, in fp32."""
PIXEL_DIFFERENCE = 1e-4
"""Largest difference of a normalised pixel. One step of 256 is more than 100 times as large."""

_SEED = 5
_SIZES = ((61, 37), (17, 91), (333, 500), (23, 23), (640, 427))
"""Width and height of the images that an image processor is given."""
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. USER: Why? ASSISTANT:",
    " leading space",
    "trailing space ",
    "  two   three    four     spaces",
    "line\nline\n\n\n\ttab\r\n",
    "12:30, 1995-007, 3.14159 and 1000000",
    "na\u00efve caf\u00e9, \u00c5ngstr\u00f6m e\u0301 \ufb01",
    "\u4e2d\u6587\u548c\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f600\U0001f469\u200d\U0001f4bb \u200b\u00a0\u3000",
    "<s>a</s> <unk> <0x41> <|im_start|>user<|im_end|> <|endoftext|> [INST] <image>",
    'def f(x):\n    return x**2  # it\'s "x"',
)
"""What the tokenizers are given: languages, white space, and what looks like special tokens."""


@dataclass(frozen=True, slots=True)
class ImportProof:
    """What of an import agrees with its source."""

    proven: tuple[str, ...]
    """What agrees, and how well; a phrase each."""
    unproven: tuple[str, ...]
    """What could not be compared, and why; a phrase each."""


def compare_source(
    source: ForeignModel,
    checkpoint: Path,
    *,
    is_image_mode_given: bool = False,
    is_streamed: bool | None = None,
    timeout_s: float = 3600.0,
) -> ImportProof:
    """Compare a checkpoint with the source that it was imported from.

    Args:
        source: what was read.
        checkpoint: what was written.
        is_image_mode_given: whether images become square otherwise than in the source. Then its
            image processor is given square images alone.
        is_streamed: as ``proving_model`` takes it.
        timeout_s: seconds after which the fresh process is stopped.

    Raises:
        CheckpointError: the source computes something else.
    """
    config = Manifest.read(resolve_checkpoint(checkpoint)).config
    dtype = DTYPES[config.train.precision]
    # What goes in first: where it differs, so does what comes out.
    requests = {"pixels": _of_pixels(source, is_image_mode_given=is_image_mode_given)}
    if config.data.tokenizer is not None:
        requests["tokens"] = _of_tokens(source.tokenizer_dir, config.data.tokenizer)
    with proving_model(checkpoint, dtype, is_streamed=is_streamed) as proving:
        requests |= _of_models(source, proving, rounds_to_bf16=dtype == torch.bfloat16)
    answers = answers_of_fresh_process(list(requests.values()), timeout_s)
    proven, unproven = [], []
    for (what, request), answer in zip(requests.items(), answers, strict=True):
        if reason := answer.get("unproven"):
            unproven.append(f"{what}: {reason}")
        else:
            proven.append(f"{what} {_judge(what, request.directory, answer)}")
    if config.data.tokenizer is None:
        unproven.append(f"tokens: there is no tokenizer in {source.tokenizer_dir}")
    return ImportProof(tuple(proven), tuple(unproven))


def _of_models(
    source: ForeignModel, proving: ProvingModel, *, rounds_to_bf16: bool
) -> dict[str, FreshRequest]:
    """What its models compute, each directory on its own."""
    vision = source.model.vision
    statistics = {
        "image_mean": vision.resolved_channel_mean(),
        "image_std": vision.resolved_channel_std(),
    }
    loading = Loading(
        is_streamed=proving.is_streamed,
        is_ours=False,
        rounds_to_bf16=rounds_to_bf16,
        trust_pickle=source.origin.trust_pickle,
        pixel_statistics=statistics,
        token_order=source.model.connector.token_order,
    )
    values: dict[str, Any] = {"loading": asdict(loading)}
    requests = {}
    for kind, directory in source.origin.parts.items():
        if kind == "tower":
            images, features = features_of(proving)
            tensors = {"images": images, "features": features}
            asked = values | {
                "select_layer": vision.select_layer,
                "interpolates": source.origin.image_size not in (None, vision.image_size),
            }
            requests["features"] = FreshRequest("features", directory, asked, tensors)
            continue
        reference = reference_of(
            proving,
            has_images=kind != "llm",
            has_greedy=False,
            reserved_token=image_token_of(directory),
            vocab_size=source.origin.vocab_size,
        )
        asked = values | {"format": kind, "vocab_size": reference.vocab_size}
        requests["logits"] = FreshRequest("logits", directory, asked, reference.tensors())
    return requests


def _of_pixels(source: ForeignModel, *, is_image_mode_given: bool) -> FreshRequest:
    """What its image processor makes of random images, at the size that it makes."""
    origin, vision = source.origin, source.model.vision
    vision = replace(vision, image_size=origin.image_size or vision.image_size)
    generator = np.random.default_rng(_SEED)
    sizes = ((vision.image_size,) * 2,) if is_image_mode_given else _SIZES
    files: dict[str, bytes] = {}
    tensors: dict[str, Tensor] = {}
    for width, height in sizes:
        file = io.BytesIO()
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
        name = f"{width} x {height}"
        files[name] = file.getvalue()
        tensors[name] = normalize_images(
            torch.from_numpy(load_squares(files[name], vision)),
            torch.float32,
            vision.resolved_channel_mean(),
            vision.resolved_channel_std(),
        )
    squares_first = None if is_image_mode_given else origin.squares_first
    values = {
        "images": list(files),
        "squares_first": squares_first,
        "tolerance": PIXEL_DIFFERENCE,
        "has_own_code": any(k != "tower" and find_format(k).has_own_code for k in origin.parts),
    }
    return FreshRequest("pixels", origin.images, values, tensors, files)


def _of_tokens(directory: Path, ours: Path) -> FreshRequest:
    """What its tokenizer reads texts as."""
    tokenizer = Tokenizer(ours)
    values = {
        "texts": TEXTS,
        "ids": [tokenizer.encode(text) for text in TEXTS],
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
    return FreshRequest("tokens", directory, values)


def _judge(what: str, directory: Path, answer: dict[str, Any]) -> str:
    """How well they agree, in a phrase. Raises CheckpointError if they do not."""
    advice = "Do not train from this import; check config.json and weights of the source."
    if fault := answer.get("fault"):
        raise CheckpointError(f"{what}: {directory} is not what was imported: {fault} {advice}")
    if "max_difference" not in answer:
        return f"equal on {answer['num_equal']}"
    largest, mean = answer["max_difference"], answer["mean_difference"]
    figures = f"greatest difference {largest:.2e}, mean {mean:.2e}"
    # Written so that NaN fails.
    if not (largest <= MAX_DIFFERENCE and mean <= MEAN_DIFFERENCE):
        raise CheckpointError(
            f"the {what} of {directory} differ from the import's: {figures} (at most "
            f"{MAX_DIFFERENCE:g} and {MEAN_DIFFERENCE:g}). {advice}"
        )
    return figures

"""A tiny VILA and one fixed global batch for tests of the parallel engine."""

from typing import Any

import torch

from vila_mc.config.load import run_from_dict
from vila_mc.config.run import RunConfig
from vila_mc.flow import IGNORE_LABEL, Microbatch

GLOBAL_BATCH = 8
VOCABULARY = 131  # odd, so that the tables have padding rows

# Images per sample. The second half has none: with two data-parallel ranks one is all text, and
# everywhere there are microbatches without any image.
IMAGES_PER_SAMPLE = (1, 2, 0, 1, 0, 0, 0, 0)

QWEN3: dict[str, Any] = {
    "language": dict(
        family="qwen3",
        head_width=24,
        tied_embeddings=True,
        layers=4,
        width=64,
        ffn=96,
        heads=4,
        kv_heads=2,
        vocab_size=VOCABULARY,
        max_positions=64,
    )
}
"""Norms of queries and keys; heads that are wider together than the model."""


def tiny_run(**sections: dict[str, Any]) -> RunConfig:
    """A run of the tiny model in fp32 without dropout; ``sections`` override by section."""
    values: dict[str, Any] = {
        "model": {
            "vision": dict(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=64),
            "language": dict(
                layers=4,
                width=64,
                ffn=96,
                heads=4,
                kv_heads=2,
                vocab_size=VOCABULARY,
                max_positions=64,
            ),
        },
        "data": {"sequence_length": 32},
        "optimizer": {"lr": 1e-3, "warmup_fraction": 0.2, "weight_decay": 0.01},
        "train": {
            "precision": "fp32",
            "global_batch": GLOBAL_BATCH,
            "micro_batch": 1,
            "steps": 5,
            "trainable": ["vision", "connector", "language"],
        },
    }
    for name, options in sections.items():
        values.setdefault(name, {}).update(options)
    return run_from_dict(values)


def tiny_microbatches(config: RunConfig, data_rank: int, data_size: int) -> list[Microbatch]:
    """One data-parallel rank's share of the fixed global batch, one sample per microbatch."""
    generator = torch.Generator().manual_seed(3)
    batch = [
        _sample(config, index, count, generator) for index, count in enumerate(IMAGES_PER_SAMPLE)
    ]
    share = GLOBAL_BATCH // data_size
    return batch[data_rank * share : (data_rank + 1) * share]


def _sample(
    config: RunConfig, index: int, num_images: int, generator: torch.Generator
) -> Microbatch:
    length, per_image = config.data.sequence_length, config.model.visual_tokens()
    side = config.model.vision.image_size
    tokens = torch.randint(3, VOCABULARY, (1, length), generator=generator)
    labels = torch.randint(3, VOCABULARY, (1, length), generator=generator)
    starts = [2 + image * (per_image + 1) for image in range(num_images)]
    for start in starts:
        tokens[0, start : start + per_image] = 0
        labels[0, start : start + per_image - 1] = IGNORE_LABEL
    # Samples train on different numbers of positions, so that a mean of means would be wrong.
    labels[0, length - 2 * index :] = IGNORE_LABEL
    images = torch.randint(
        0, 256, (num_images, 3, side, side), generator=generator, dtype=torch.uint8
    )
    return Microbatch(
        tokens=tokens,
        labels=labels,
        images=images,
        image_starts=torch.tensor([[0, start] for start in starts]).view(-1, 2).long(),
        num_samples=1,
    )

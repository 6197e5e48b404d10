"""What a rank does in the parity tests of tiles: samples whose pictures differ in shape."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.parity.layout_trace import NUM_STEPS, Trace
from tests.support.pieces import text_piece
from tests.support.tiny import VOCABULARY, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.data.batches.collate import Sample, collate, positions_of
from vila_mc.data.batches.packing import best_fit
from vila_mc.flow import ImagePiece
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

NUM_ROWS, NUM_SAMPLES = 8, 12
LENGTH = 64
SIDES = ((28, 28), (84, 28), (30, 60))
"""Of one, four and three tiles."""
VISION = dict(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=64)
CUT = dict(image_mode="tiles", max_tiles=4, tile_newline=5)


def trace_of_tiles(seed_checkpoint: Path, parallel: dict[str, Any], packed: bool) -> Trace:
    """Loss and gradient norm of a few steps on the fixed samples, packed or one to a row."""
    model = tiny_run().model
    config = tiny_run(
        parallel=parallel,
        data=dict(sequence_length=LENGTH),
        model={"vision": VISION | CUT},
        train=dict(micro_batch=1, global_batch=NUM_ROWS),
    )
    assert config.model.vision.width == model.vision.width
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(config, ranks)
        load_weights(seed_checkpoint, stages)
        trainer = Trainer(config, ranks, stages)
        samples = _samples()
        rows: list[list[Sample]] = [[sample] for sample in samples]
        if packed:
            lengths = [sum(positions_of(p, config.model) for p in sample) for sample in samples]
            row_of = best_fit(lengths, NUM_ROWS, LENGTH)
            assert len(row_of) == len(samples)
            rows = [[samples[i] for i in np.flatnonzero(row_of == row)] for row in range(NUM_ROWS)]
        batches = [collate([row], config.model, LENGTH, needs_images=True) for row in rows]
        mine = batches[ranks.at.data :: ranks.layout.data]
        results = [trainer.step(mine) for _ in range(NUM_STEPS)]
        assert results[0].num_images == 32
        return [(result.loss, result.grad_norm) for result in results]


def _samples() -> list[Sample]:
    """Text around no, one or two pictures of every shape."""
    choose = np.random.default_rng(11)
    samples: list[Sample] = []
    for number in range(NUM_SAMPLES):
        prompt = choose.integers(3, VOCABULARY, 1 + number % 3)
        answer = choose.integers(3, VOCABULARY, 1 + number % 5)
        images = [_picture(choose, SIDES[(number + k) % 3]) for k in range(number % 3)]
        samples.append([text_piece(prompt, False), *images, text_piece(answer, True)])
    return samples


def _picture(choose: np.random.Generator, sides: tuple[int, int]) -> ImagePiece:
    buffer = io.BytesIO()
    pixels = choose.integers(0, 256, (sides[1], sides[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImagePiece(np.frombuffer(buffer.getvalue(), np.uint8), "a test's image", sides)

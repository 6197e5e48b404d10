"""What a rank does in the packing-parity tests: the same samples, packed or one to a row."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.parity.layout_trace import NUM_STEPS, Trace
from tests.support.pieces import text_piece
from tests.support.tiny import VOCABULARY, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.collate import Sample, collate
from vila_mc.data.batches.packing import best_fit
from vila_mc.flow import ImagePiece, Microbatch
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

NUM_ROWS = 8
MICRO_BATCH = 2
NUM_SAMPLES = 28


def trace_of_samples(
    seed_checkpoint: Path, parallel: dict[str, Any], packed: bool, **train: Any
) -> Trace:
    """Loss and gradient norm of a few steps on the fixed samples; ``train`` adds to its section."""
    config = _run(parallel, train)
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(config, ranks)
        load_weights(seed_checkpoint, stages)
        trainer = Trainer(config, ranks, stages)
        batches = microbatches(config, packed)[ranks.at.data :: ranks.layout.data]
        results = [trainer.step(batches) for _ in range(NUM_STEPS)]
        return [(result.loss, result.grad_norm) for result in results]


def gradients_of_samples(
    seed_checkpoint: Path, packed: bool, **train: Any
) -> dict[str, np.ndarray]:
    """The gradient of every weight for the fixed samples, on one rank."""
    config = _run({}, train)
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        load_weights(seed_checkpoint, stages)
        trainer = Trainer(config, ranks, stages)
        trainer._forward_backward(microbatches(config, packed))
        return {
            name: weight.main_grad.cpu().numpy().copy()
            for name, weight in stages[0].named_parameters()
        }


def microbatches(config: RunConfig, packed: bool) -> list[Microbatch]:
    """The fixed samples in micro-batches of ``MICRO_BATCH`` rows, all of one global batch."""
    samples = _samples()
    if packed:
        visual = config.model.visual_tokens()
        lengths = [
            sum(visual if isinstance(piece, ImagePiece) else len(piece.ids) for piece in sample)
            for sample in samples
        ]
        rows_of = best_fit(lengths, NUM_ROWS, config.data.sequence_length)
        assert len(rows_of) == len(samples)
        rows = [[samples[i] for i in np.flatnonzero(rows_of == row)] for row in range(NUM_ROWS)]
        assert {len(row) for row in rows} == {1, 3, 4, 5}
    else:
        rows = [[sample] for sample in samples]
    return [
        collate(
            rows[start : start + MICRO_BATCH],
            config.model,
            config.data.sequence_length,
            needs_images=True,
        )
        for start in range(0, len(rows), MICRO_BATCH)
    ]


def _run(parallel: dict[str, Any], train: dict[str, Any] | None = None) -> RunConfig:
    rows = dict(micro_batch=MICRO_BATCH, global_batch=NUM_ROWS)
    return tiny_run(parallel=parallel, train=rows | (train or {}))


def _samples() -> list[Sample]:
    """Text of several lengths around no, one or two images."""
    choose = np.random.default_rng(7)
    samples: list[Sample] = []
    for number in range(NUM_SAMPLES):
        prompt = choose.integers(3, VOCABULARY, 1 + number % 3)
        answer = choose.integers(3, VOCABULARY, 1 + number % 5)
        images = [ImagePiece(_picture(choose), "a test's image") for _ in range(number % 8 // 3)]
        samples.append([text_piece(prompt, False), *images, text_piece(answer, True)])
    return samples


def _picture(choose: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(choose.integers(0, 256, (28, 28, 3), np.uint8)).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)

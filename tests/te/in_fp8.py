"""What ranks do in FP8 in the tests here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity import layout_trace
from tests.parity.layout_trace import Trace
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.errors import SetupError
from vila_mc.flow import Microbatch
from vila_mc.model import fp8, vision_tower
from vila_mc.model.build import build_stages
from vila_mc.model.megatron_config import language_config
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer
from vila_mc.train.validation import validate


def train(seed: Path, parallel: dict[str, Any], options: dict[str, Any], **others: Any) -> Trace:
    """The trace of a few steps in bf16 with ``options`` of FP8."""
    section = {"layers": "transformer_engine", "precision": "bf16", "fp8": options, **others}
    (trace,) = layout_trace.trace(seed, parallel, train=section)
    return trace


def refusal(options: dict[str, Any], capability: tuple[int, int]) -> str:
    """What a GPU of that capability says to a recipe; empty if nothing."""
    from transformer_engine.pytorch import utils

    utils.get_device_compute_capability = lambda: capability
    section = {"layers": "transformer_engine", "precision": "bf16", "fp8": options}
    config = tiny_run(train=section)
    with distributed(config.parallel, seed=1):
        try:
            language_config(config)
        except SetupError as error:
            return str(error)
    return ""


def _trainer(seed: Path, ranks: Any, options: dict[str, Any]) -> Trainer:
    section = {"layers": "transformer_engine", "precision": "bf16", "fp8": options}
    config = tiny_run(train=section)
    stages = build_stages(config, ranks)
    load_weights(seed, stages)
    return Trainer(config, ranks, stages)


def steps_and_scales(
    seed: Path, options: dict[str, Any], validates: bool
) -> tuple[Trace, list[np.ndarray]]:
    """The trace of steps, with validation between them or not, and what FP8 remembers at last."""
    with distributed(tiny_run().parallel, seed=1) as ranks:
        trainer = _trainer(seed, ranks, options)
        batches = _microbatches()
        trace = []
        for step in range(layout_trace.NUM_STEPS):
            result = trainer.step(batches)
            trace.append((result.loss, result.grad_norm))
            if validates:
                record, _ = validate(trainer, [batches[:2]], 1, step)
                assert record.validation_loss == record.validation_loss  # it was measured
        modules = [module for stage in trainer.stages for module in stage.modules()]
        scales = [each for module in modules for each in fp8.delayed_scales(module).values()]
        return trace, [scale.numpy() for scale in scales]


def _microbatches() -> list[Microbatch]:
    """The fixed global batch, of the first entry of a blend."""
    batches = tiny_microbatches(tiny_run(), 0, 1)
    whole = ((batches[0].tokens.size(1),),)
    return [replace(each, entries=((0,),), sample_lengths=whole) for each in batches]


def losses_around_a_change(seed: Path, options: dict[str, Any]) -> tuple[float, float, float]:
    """Measured before a weight of a part changes, after it, and after it has changed back."""
    with distributed(tiny_run().parallel, seed=1) as ranks:
        trainer = _trainer(seed, ranks, options)
        batches = _microbatches()
        part: Any = getattr(trainer.stages[0], options["parts"][0])
        weight = part.decoder.layers[0].mlp.linear_fc2.weight
        trainer.step(batches)
        kept, losses = weight.detach().clone(), []
        for value in (kept, 2 * kept, kept):
            with torch.no_grad():
                weight.copy_(value)
            losses.append(validate(trainer, [batches[:2]], 1, 1)[0].validation_loss)
        return losses[0], losses[1], losses[2]


def padded_and_not(
    seed: Path, options: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features of 16 images and gradients of the tower, with its tokens padded and without."""
    section = {"layers": "transformer_engine", "precision": "bf16", "fp8": options}
    config = tiny_run(train=section)
    results = []
    pad = vision_tower._pad_tokens
    with distributed(config.parallel, seed=1) as ranks:
        for change in (pad, lambda tower, multiple: None):
            vision_tower._pad_tokens = change
            (stage,) = build_stages(config, ranks)
            load_weights(seed, [stage])
            generator = torch.Generator().manual_seed(2)
            images = torch.randint(0, 256, (16, 3, 28, 28), generator=generator, dtype=torch.uint8)
            features = stage.patch_features(images)
            shape = features.shape
            (features * torch.randn(shape, generator=generator).to(features)).sum().backward()
            vision: Any = stage.vision
            tensors = {name: weight.grad for name, weight in vision.named_parameters()}
            tensors["features"] = features.detach()
            results.append({name: tensor.float().numpy() for name, tensor in tensors.items()})
    return results[0], results[1]

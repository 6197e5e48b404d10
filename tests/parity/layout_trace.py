"""What a rank does in the layout-parity tests: train a few steps and return the trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train import step as step_module
from vila_mc.train.step import Trainer

ALL_PARTS = ("vision", "connector", "language")
TRAINABLES = {"everything": ALL_PARTS, "align": ("connector",)}
"""What the tests train."""
NUM_STEPS = 5

Trace = list[tuple[float, float]]
"""Loss and gradient norm of every step."""


def write_seed_checkpoint(directory: Path, model: dict[str, Any] | None = None) -> None:
    """Fresh weights of the tiny model, written by one rank; ``model`` overrides its section."""
    config = tiny_run(model=model or {}, train={"output": str(directory)})
    with distributed(config.parallel, seed=1) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        _make_one_dimensional_weights_matter(trainer)
        manifest = Manifest(step=0, samples_seen=0, config=config, layout=None, versions=versions())
        directory.mkdir(parents=True, exist_ok=True)
        PendingSave(
            manifest, ranks, trainer.stages, trainer.optimizer, in_background=False
        ).finish()


def trace(
    seed_checkpoint: Path,
    parallel: dict[str, Any],
    trainables: Sequence[tuple[str, ...]] = (ALL_PARTS,),
    train: dict[str, Any] | None = None,
    plant_mean_of_means: bool = False,
    model: dict[str, Any] | None = None,
    optimizers: Sequence[dict[str, Any]] | None = None,
) -> list[Trace]:
    """The trace of every entry of ``trainables``, each with its entry of ``optimizers``; the last
    options override sections."""
    traces = []
    parallel_config = tiny_run(parallel=parallel).parallel
    with distributed(parallel_config, seed=1, timeout_minutes=2) as ranks:
        settings = optimizers or [{}] * len(trainables)
        for trainable, optimizer in zip(trainables, settings, strict=True):
            options = {"trainable": list(trainable), **(train or {})}
            sections = {"model": model or {}, "optimizer": optimizer}
            config = tiny_run(parallel=parallel, train=options, **sections)
            stages = build_stages(config, ranks)
            load_weights(seed_checkpoint, stages)
            trainer = Trainer(config, ranks, stages)
            batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
            if plant_mean_of_means:
                _plant_mean_of_means(trainer)
            results = [trainer.step(batches) for _ in range(NUM_STEPS)]
            traces.append([(result.loss, result.grad_norm) for result in results])
    return traces


def traces_of_models(
    seeds: Path, parallel: dict[str, Any], models: Mapping[str, dict[str, Any]], num_steps: int
) -> dict[str, Trace]:
    """The trace of every model by its name, which is also that of its seed checkpoint."""
    traces = {}
    with distributed(tiny_run(parallel=parallel).parallel, seed=1, timeout_minutes=2) as ranks:
        for name, model in models.items():
            config = tiny_run(parallel=parallel, model=model)
            stages = build_stages(config, ranks)
            load_weights(seeds / name, stages)
            trainer = Trainer(config, ranks, stages)
            batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
            results = [trainer.step(batches) for _ in range(num_steps)]
            traces[name] = [(result.loss, result.grad_norm) for result in results]
    return traces


def seed_and_trace(directory: Path, model: dict[str, Any]) -> Trace:
    """Write a seed checkpoint of ``model``, and the trace of one rank from it."""
    write_seed_checkpoint(directory, model)
    (result,) = trace(directory, {}, model=model)
    return result


def resumed_trace(
    checkpoints: Path,
    seed_checkpoint: Path,
    parallel: dict[str, Any],
    *,
    steps: int,
    save: bool,
    train: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
) -> Trace:
    """Train ``steps`` steps from the seed and save, or resume from that save and go on."""
    options = {"output": str(checkpoints), **(train or {})}
    config = tiny_run(parallel=parallel, train=options, optimizer=optimizer or {})
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(config, ranks)
        if save:
            load_weights(seed_checkpoint, stages)
        trainer = Trainer(config, ranks, stages)
        if not save:
            trainer.resume(checkpoints)
        batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
        results = [trainer.step(batches) for _ in range(steps)]
        if save:
            manifest = Manifest(
                step=steps, samples_seen=8 * steps, config=config, layout=None, versions=versions()
            )
            checkpoints.mkdir(parents=True, exist_ok=True)
            PendingSave(manifest, ranks, stages, trainer.optimizer, in_background=False).finish()
        return [(result.loss, result.grad_norm) for result in results]


def _make_one_dimensional_weights_matter(trainer: Trainer) -> None:
    """Norms start at 1 and biases at 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.stages[0].parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _plant_mean_of_means(trainer: Trainer) -> None:
    """The error the tests must catch: the gradient gives every microbatch's mean the same weight.

    The reported loss stays the correct one, so that only what was learnt gives the error away.
    """
    correct = step_module.loss_sum_and_count

    def mean_of_means(labels: torch.Tensor, loss_bs: torch.Tensor) -> Any:
        loss_sum, count, report = correct(labels, loss_bs)
        return loss_sum / count.clamp(min=1), torch.ones_like(count), report

    step_module.loss_sum_and_count = mean_of_means

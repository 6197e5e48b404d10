"""What a rank does in the layout-parity tests: train a few steps and return the trace."""

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.training import load_checkpoint, load_weights, save_checkpoint
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train import step as step_module
from vila_mc.train.step import Trainer

ALL_PARTS = ("vision", "connector", "language")
NUM_STEPS = 5


def write_seed_checkpoint(directory: Path) -> None:
    """Fresh weights of the tiny model, written by one rank."""
    run = tiny_run()
    with distributed(run.parallel, seed=1) as ranks:
        trainer = Trainer(run, ranks, build_stages(run, ranks))
        _make_one_dimensional_weights_matter(trainer)
        manifest = Manifest(step=0, samples_seen=0, run=run, layout="1", versions=versions())
        save_checkpoint(
            directory,
            manifest,
            ranks,
            trainer.stages,
            trainer.optimizer,
            trainer.scheduler,
            keep_last=1,
        )


def trace(
    seed_checkpoint: Path,
    parallel: dict[str, Any],
    trainables: list[tuple[str, ...]],
    plant_mean_of_means: bool = False,
) -> list[list[tuple[float, float]]]:
    """(loss, grad norm) of every step, one list per entry of ``trainables``."""
    traces = []
    parallel_config = tiny_run(parallel=parallel).parallel
    with distributed(parallel_config, seed=1, timeout_minutes=2) as ranks:
        for trainable in trainables:
            run = tiny_run(parallel=parallel, train={"trainable": list(trainable)})
            stages = build_stages(run, ranks)
            load_weights(seed_checkpoint, stages)
            trainer = Trainer(run, ranks, stages)
            batches = tiny_microbatches(run, ranks.at.data, ranks.layout.data)
            if plant_mean_of_means:
                _plant_mean_of_means(trainer)
            results = [trainer.step(batches) for _ in range(NUM_STEPS)]
            traces.append([(result.loss, result.grad_norm) for result in results])
    return traces


def resumed_trace(
    checkpoints: Path, seed_checkpoint: Path, parallel: dict[str, Any], *, steps: int, save: bool
) -> list[tuple[float, float]]:
    """Train ``steps`` steps from the seed and save, or resume from that save and go on."""
    run = tiny_run(parallel=parallel)
    with distributed(run.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(run, ranks)
        if save:
            load_weights(seed_checkpoint, stages)
        trainer = Trainer(run, ranks, stages)
        if not save:
            load_checkpoint(checkpoints, ranks, stages, trainer.optimizer, trainer.scheduler)
        batches = tiny_microbatches(run, ranks.at.data, ranks.layout.data)
        results = [trainer.step(batches) for _ in range(steps)]
        if save:
            manifest = Manifest(
                step=steps, samples_seen=8 * steps, run=run, layout="", versions=versions()
            )
            save_checkpoint(
                checkpoints,
                manifest,
                ranks,
                stages,
                trainer.optimizer,
                trainer.scheduler,
                keep_last=1,
            )
        return [(result.loss, result.grad_norm) for result in results]


def _make_one_dimensional_weights_matter(trainer: Trainer) -> None:
    """Norms start at 1 and biases at 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.stages[0].parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _plant_mean_of_means(trainer: Trainer) -> None:
    """The error the tests must catch: every microbatch's mean counts the same."""
    correct = step_module.loss_sum_and_count

    def mean_of_means(labels, loss_bs):  # type: ignore[no-untyped-def]
        loss_sum, count, _ = correct(labels, loss_bs)
        mean = loss_sum / count.clamp(min=1)
        return mean, torch.ones_like(count), {"loss_sum": mean.detach()}

    step_module.loss_sum_and_count = mean_of_means

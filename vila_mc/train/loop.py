"""A training stage from start or resume to its last step."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vila_mc.checkpoint.manifest import Manifest, versions, whole_checkpoints
from vila_mc.checkpoint.training import (
    check_room,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from vila_mc.config.run import RunConfig
from vila_mc.data.loader import StepData, TrainingData
from vila_mc.errors import CheckpointError, ConfigError
from vila_mc.flow import Microbatch, StepResult
from vila_mc.model.build import build_stages, count_weights
from vila_mc.model.megatron_config import DTYPES
from vila_mc.observe.console import StepPrinter
from vila_mc.observe.metrics import MetricsLog
from vila_mc.parallel.groups import Ranks
from vila_mc.train.faults import StopRequest
from vila_mc.train.step import Trainer


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands. With the weights and the optimizer it is all there is to resume."""

    step: int
    samples_seen: int


class Run:
    """Everything one rank needs to train one stage.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        stop: becomes true when the user or the cluster wants the run to end.

    Raises:
        VilaError: data, checkpoint or output cannot be used; before any step.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, stop: StopRequest) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        stages = build_stages(config, ranks)
        weight_bytes = DTYPES[config.train.precision].itemsize
        num_weights = count_weights(stages, ranks)
        if ranks.is_first():
            check_room(config.train.output, num_weights, weight_bytes)
            print(f"{num_weights:,} weights, {ranks.layout}", flush=True)
        self.data = TrainingData(
            config.data,
            config.model,
            micro_batch=config.train.micro_batch,
            global_batch=config.train.global_batch,
            data_rank=ranks.at.data,
            data_size=ranks.layout.data,
            needs_images=any(stage.plan.needs_images() for stage in stages),
        )
        self.state = self._restore_or_start(stages)
        self.printer = StepPrinter(config.train.steps, config.train.stage)
        self.metrics = (
            MetricsLog(config.train.output, self.state.step) if ranks.is_first() else None
        )

    def fit(self) -> TrainState:
        """Train to the last step, or until asked to stop; the last state is always saved."""
        batches = self.data.iterate(self.state.samples_seen)
        while self.state.step < self.config.train.steps:
            result = self._train_step(batches)
            if result.should_stop or self._is_save_due():
                self._save()
            if result.should_stop:
                break
        return self.state

    def close(self) -> None:
        """Stop the loader's threads and close the log."""
        self.data.close()
        if self.metrics is not None:
            self.metrics.close()

    def _train_step(self, steps: Iterator[StepData]) -> StepResult:
        started = time.monotonic()
        data = next(steps)
        result = self.trainer.step(data.microbatches, should_stop=self.stop.was_made)
        seconds = time.monotonic() - started
        self.state = TrainState(self.state.step + 1, data.samples_seen)
        if self.ranks.at.tensor == 0:
            _warn_of_substitutes(data.microbatches)
        if self.metrics is not None:
            self.printer.show(self.state.step, result, seconds, result.num_samples)
            self.metrics.write(
                {
                    "step": self.state.step,
                    "loss": result.loss,
                    "grad_norm": result.grad_norm,
                    "learning_rate": result.learning_rate,
                    "trained_tokens": result.trained_tokens,
                    "images": result.num_images,
                    "samples": result.num_samples,
                    "filled": round(result.filled, 4),
                    "substitutes": result.substitutes,
                    "step_ms": round(1000 * seconds, 3),
                }
            )
        return result

    def _restore_or_start(self, stages: list) -> TrainState:  # type: ignore[type-arg]
        train = self.config.train
        earlier = whole_checkpoints(train.output)
        if earlier and not train.resume:
            raise ConfigError(
                f"{train.output} already holds {earlier[-1].name}, and train.resume is false. Set "
                "train.resume to true to go on from it, or train.output to another directory."
            )
        if not earlier and train.load is not None:
            load_weights(train.load, stages)
        self.trainer = Trainer(self.config, self.ranks, stages)
        if not earlier:
            return TrainState(step=0, samples_seen=0)
        manifest = load_checkpoint(
            earlier[-1], self.ranks, stages, self.trainer.optimizer, self.trainer.scheduler
        )
        _require_same_order(manifest, self.config)
        if self.ranks.is_first():
            print(f"resuming after step {manifest.step} from {earlier[-1]}", flush=True)
        return TrainState(manifest.step, manifest.samples_seen)

    def _is_save_due(self) -> bool:
        step = self.state.step
        return step % self.config.train.save_every == 0 or step == self.config.train.steps

    def _save(self) -> None:
        manifest = Manifest(
            step=self.state.step,
            samples_seen=self.state.samples_seen,
            run=self.config,
            layout=str(self.ranks.layout),
            versions=versions(),
        )
        path = save_checkpoint(
            self.config.train.output,
            manifest,
            self.ranks,
            self.trainer.stages,
            self.trainer.optimizer,
            self.trainer.scheduler,
            keep_last=self.config.train.keep_last,
        )
        if self.ranks.is_first():
            print(f"saved {path}", flush=True)


def _require_same_order(manifest: Manifest, config: RunConfig) -> None:
    """A position means something only in the order it was counted in."""
    theirs, ours = manifest.run.data, config.data
    their_order, our_order = (
        (data.seed, data.by_epochs(), data.blend_shares()) for data in (theirs, ours)
    )
    if their_order != our_order:
        raise CheckpointError(
            f"the checkpoint after step {manifest.step} was written with another data.seed or "
            "data.blend, so its position in the data means nothing here. Restore them, or start a "
            "new stage from its weights with train.load and another train.output."
        )


def _warn_of_substitutes(microbatches: Sequence[Microbatch]) -> None:
    """Say which images were replaced; only the ranks that decode images know."""
    for batch in microbatches:
        for message in batch.substitutes:
            print(f"warning: {message} Its mean colour stands in for it.", file=sys.stderr)

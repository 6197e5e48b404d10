"""Rehearse one rank: build it, train two steps, and write down what that takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vila_mc.config.lora import is_adapter
from vila_mc.config.run import RunConfig
from vila_mc.config.trainable import piece_of
from vila_mc.flow import Microbatch
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.rehearsal.batch import Row, full_rows, microbatch_of
from vila_mc.rehearsal.device import fake_device
from vila_mc.rehearsal.record import RankRecord
from vila_mc.rehearsal.recorder import Recorder
from vila_mc.rehearsal.save import peaks_of_a_save
from vila_mc.topology.shapes import stage_parameters
from vila_mc.topology.stage_plan import plan_stages
from vila_mc.train.step import Trainer

_STEPS = 2
"""The first makes the optimizer's moments; the second is as all others."""
_PURPOSES = {
    "tp": "tensor",
    "dp": "data",
    "dp_cp": "data",
    "intra_dp_cp": "data",
    "pp": "pipeline",
    "embd": "embedding",
    "pos_embd": "position embedding",
    "mp": "model",
    "intra_dist_opt": "gradient norm",
}
"""Fields of Megatron-Core's collection of process groups, and what each group is for."""


class _GoodTrainer(Trainer):
    """Its steps go well: figures that ranks add up have no numbers here, and say nothing."""

    def _sum_over_ranks(self, *args: Any) -> Any:
        total, by_entry = super()._sum_over_ranks(*args)
        return total._replace(trained_tokens=1.0, bad_gradients=0.0), by_entry


def rehearse_rank(
    config: RunConfig,
    world_size: int,
    rank: int,
    guard: Path,
    num_microbatches: int,
    batch: Sequence[Row] | Microbatch | None = None,
) -> RankRecord:
    """Build and train one rank on fake CUDA tensors.

    Args:
        config: the whole configuration.
        world_size: ranks that are played.
        rank: which of them.
        guard: what ``device.compile_guard`` made.
        num_microbatches: of a step; those of real steps add nothing to the peak beyond as many as
            there are pipeline stages.
        batch: what each of them is: its rows, or tensors; rows full of images if None.
    """
    started = time.monotonic()
    with (
        fake_device(world_size, rank, guard),
        Recorder() as recorder,
        distributed(config.parallel, seed=config.train.seed) as ranks,
    ):
        record = record_steps(config, ranks, recorder, num_microbatches, batch)
    return replace(record, seconds=time.monotonic() - started)


def record_steps(
    config: RunConfig,
    ranks: Ranks,
    recorder: Recorder,
    num_microbatches: int,
    batch: Sequence[Row] | Microbatch | None = None,
) -> RankRecord:
    """What ``recorder``, which is active, sees of a rank's start and of its second step."""
    _name_groups(ranks, recorder)
    memory = recorder.ledgers[recorder.device]
    stages = build_stages(config, ranks)
    _say_what_learns_below(config, ranks, stages)
    trainer = _GoodTrainer(config, ranks, stages)
    trainer.weights_are_finite()
    _label(recorder, trainer)
    build = memory.peak()
    host = {"build": recorder.ledgers["cpu"].bytes_at_peak}
    weights = [weight for stage in stages for weight in stage.parameters()]
    if not isinstance(batch, Microbatch):
        with _real_host(recorder):
            needs_images = any(stage.plan.needs_images() for stage in stages)
            batch = microbatch_of(config, batch or full_rows(config), needs_images=needs_images)
    _say_when_the_passes_end(stages, recorder)
    for _ in range(_STEPS):
        recorder.forget_step()
        recorder.phase = None
        trainer.step([batch] * num_microbatches)
        recorder.phase = "build"
        _label(recorder, trainer)
    record = RankRecord(
        rank=ranks.rank,
        tensor=ranks.at.tensor,
        pipeline=ranks.at.pipeline,
        num_weights=sum(weight.numel() for weight in weights),
        num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        microbatches=num_microbatches,
        build=build,
        step=memory.peak(),
        flops=dict(recorder.flops),
        calls=list(recorder.calls),
        groups=dict(recorder.groups),
        waits=dict(recorder.waits),
        complaints=sorted(recorder.complaints),
        host=host | {"step": recorder.ledgers["cpu"].bytes_at_peak},
    )
    save, on_host = peaks_of_a_save(config.train, ranks, stages, trainer, recorder)
    return replace(record, save=save, host=record.host | {"save": on_host})


def _say_what_learns_below(config: RunConfig, ranks: Ranks, stages: Sequence[VilaModel]) -> None:
    """Stages ask each other at the start, and there the answer is a number."""
    plans, learning = plan_stages(config.model, config.parallel), config.learning_pieces()
    learns = [
        any(
            is_adapter(parameter.name) or piece_of(parameter.name) in learning
            for parameter in stage_parameters(config.model, plan, config.lora)
        )
        for plan in plans
    ]
    for index, stage in enumerate(stages):
        place = ranks.at.pipeline + index * ranks.layout.pipeline
        stage.learns_below = any(learns[:place])


@contextmanager
def _real_host(recorder: Recorder) -> Iterator[None]:
    """While active, tensors on the host are real, as those of a step are."""
    before, recorder.phase = recorder.phase, None
    try:
        yield
    finally:
        recorder.phase = before


def _name_groups(ranks: Ranks, recorder: Recorder) -> None:
    recorder.group_names[dist.group.WORLD.group_name] = "world"  # type: ignore[union-attr]
    for field, purpose in _PURPOSES.items():
        group = getattr(ranks.groups, field, None)
        if group is not None:
            recorder.group_names.setdefault(group.group_name, purpose)


def _say_when_the_passes_end(stages: Sequence[VilaModel], recorder: Recorder) -> None:
    """What Megatron-Core's schedule does last begins the update."""

    def and_say(finalize: Callable[..., Any]) -> Callable[..., Any]:
        def finalize_and_say(*args: Any, **options: Any) -> Any:
            recorder.phase = "update"
            return finalize(*args, **options)

        return finalize_and_say

    for stage in stages:
        stage.config.finalize_model_grads_func = and_say(stage.config.finalize_model_grads_func)


def _label(recorder: Recorder, trainer: Trainer) -> None:
    """Say of every tensor that lives on what it is."""
    memory = recorder.ledgers[recorder.device]
    for wrapped in trainer.wrapped:
        for weight in wrapped.parameters():
            memory.label(weight.data, "weights")
        for buffer in (*wrapped.buffers, *wrapped.expert_parallel_buffers):
            if buffer.param_data is not None:
                memory.label(buffer.param_data, "weights")
            memory.label(buffer.grad_data, "gradients")
    for part in trainer.optimizer.chained_optimizers:
        if part.optimizer is None:
            continue
        made = frozenset({"build", "temporary", "activations"})
        for group in part.optimizer.param_groups:
            for master in group["params"]:
                memory.label(master.data, "optimizer", only_from=made)
        for state in part.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    memory.label(value, "optimizer")

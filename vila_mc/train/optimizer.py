"""The distributed optimizer and its learning-rate schedule."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride
from megatron.core.utils import get_attr_wrapped_model

from vila_mc.config.run import RunConfig
from vila_mc.model.fp8 import megatron_recipe
from vila_mc.model.freeze import weights_by_piece
from vila_mc.model.megatron_config import DTYPES

_FIRST_LOSS_SCALE = 2.0**16
"""Of fp16 and a mean loss; what is scaled is the sum over a microbatch. Megatron-Core begins with
2**32, which overflows in the first dozen steps."""
_LEAST_LOSS_SCALE = 2.0**-16
_STEADY = 0.1
"""Share by which a rate may differ from what the earlier schedule would have gone on with."""


def build_optimizer(
    config: RunConfig, stages: Sequence[DistributedDataParallel]
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW whose state is divided among data-parallel ranks, and its schedule.

    The scheduler must exist even for a constant rate: Megatron-Core 0.19.2 keeps weight decay off
    norms and biases only through it.
    """
    settings = config.optimizer
    positions = config.train.rows_of_a_pass() * config.data.sequence_length
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_grad,
            bf16=config.train.precision == "bf16",
            fp16=config.train.precision == "fp16",
            initial_loss_scale=_FIRST_LOSS_SCALE / 2 ** math.ceil(math.log2(positions)),
            min_loss_scale=_LEAST_LOSS_SCALE,
            hysteresis=1,
            params_dtype=DTYPES[config.train.precision],
            use_distributed_optimizer=True,
            fp8_recipe=megatron_recipe(config.train.fp8),
            reuse_grad_buf_for_mxfp8_param_ag=config.train.fp8.gathers_in_bf16(),
        ),
        list(stages),
        _groups(config, stages),
    )
    return optimizer, _schedule(config, optimizer)


def _groups(
    config: RunConfig, stages: Sequence[DistributedDataParallel]
) -> dict[ParamKey, ParamGroupOverride]:
    """What differs from the optimizer's own settings, and for which parameters.

    Megatron-Core makes a group of those that differ alike, and the same groups on every rank.
    """
    overrides: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for stage in stages:
        for piece, weight in weights_by_piece(
            get_attr_wrapped_model(stage, "plan", return_model_obj=True)
        ):
            override = _override(config, piece, is_matrix=weight.dim() > 1)
            overrides.setdefault(tuple(override.items()), []).append(id(weight))
    return {
        ParamKey(predicate=ParamPredicate(str(items), partial(_is_among, frozenset(chosen)))): (
            ParamGroupOverride(**dict(items))  # type: ignore[typeddict-item]
        )
        for items, chosen in overrides.items()
        if items
    }


def _override(config: RunConfig, piece: str, *, is_matrix: bool) -> dict[str, float]:
    settings = config.optimizer
    rate = settings.rate_of(piece, config.model.vision.built_layers())
    decay = settings.weight_decay_of(piece)
    override: dict[str, float] = {}
    if rate != settings.lr:
        override |= {"max_lr": rate, "min_lr": settings.min_lr * rate / settings.lr}
    if decay != settings.weight_decay:
        override |= {"start_wd": decay, "end_wd": decay}
    return override if is_matrix else override | {"wd_mult": 0.0}


def _is_among(chosen: Collection[int], weight: torch.nn.Parameter) -> bool:
    return id(weight) in chosen


def rate_of(config: RunConfig, step: int) -> float:
    """Learning rate of a step, counted from 1."""
    schedule = _schedule(config, SimpleNamespace(param_groups=[]))
    schedule.step(step)
    return float(schedule.get_lr({}))


def jump_of_the_rate(before: RunConfig, now: RunConfig, step: int) -> str | None:
    """One line if the rate does not go on after ``step`` from where the run ``before`` had it."""
    expected = rate_of(before, min(step + 1, before.train.steps))
    jumped = rate_of(now, step + 1)
    if abs(jumped - expected) <= _STEADY * max(jumped, expected):
        return None
    return (
        f"the learning rate jumps from {rate_of(before, step):.2e} in step {step} to {jumped:.2e}: "
        "it follows from train.steps and optimizer.* of now, as if they had been so from the start"
    )


def _schedule(config: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    settings, steps = config.optimizer, config.train.steps
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=min(round(settings.warmup_fraction * steps), steps - 1),
        lr_decay_steps=steps,
        lr_decay_style=settings.decay,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )

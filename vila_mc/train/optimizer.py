"""The distributed optimizer and its learning-rate schedule."""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from vila_mc.config.run import RunConfig
from vila_mc.model.megatron_config import DTYPES


def build_optimizer(
    config: RunConfig, stages: Sequence[DistributedDataParallel]
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW whose state is divided among data-parallel ranks, and its schedule.

    The scheduler must exist even for a constant rate: Megatron-Core 0.19.2 keeps weight decay off
    norms and biases only through it.
    """
    settings, steps = config.optimizer, config.train.steps
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
            params_dtype=DTYPES[config.train.precision],
            use_distributed_optimizer=True,
        ),
        list(stages),
    )
    scheduler = OptimizerParamScheduler(
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
    return optimizer, scheduler

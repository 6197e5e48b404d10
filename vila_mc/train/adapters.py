"""What a run with LoRA adapters says of itself, and what must not change in them on the way."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.train.step import Trainer

_MIB = 2**20
_BYTES_OF_MOMENTS, _BYTES_OF_MASTER = 8, 4
"""Of one weight that learns: both of Adam's, and the fp32 copy of one in 16 bits."""


def adapters_line(trainer: Trainer) -> str:
    """One line about the adapters and what learning takes; every rank must call this.

    ``lora.rank 8 on q_proj, v_proj; gradients of all that learns take 0.05 MiB and the optimizer
    0.09 MiB over all ranks``
    """
    lora = trainer.config.lora
    targets = [*lora.targets, *(f"vision {target}" for target in lora.vision_targets)]
    gradients = sum(
        buffer.grad_data.numel() * buffer.grad_data.element_size()
        for stage in trainer.wrapped
        for buffer in stage.buffers
    )
    taken = torch.tensor([gradients, _optimizer_bytes(trainer)], dtype=torch.int64)
    taken = taken.to(trainer.ranks.device)
    dist.all_reduce(taken)
    gradient_mib, optimizer_mib = (count / _MIB for count in taken.tolist())
    return (
        f"lora.rank {lora.rank} on {', '.join(targets)}; gradients of all that learns take "
        f"{gradient_mib:,.2f} MiB and the optimizer {optimizer_mib:,.2f} MiB over all ranks"
    )


def leaves_a_base(config: RunConfig) -> bool:
    """Whether checkpoints of a run will hold what learns alone."""
    train = config.train
    loads_all = train.load is not None and set(train.load_parts) == set(MODEL_PARTS)
    return bool(config.lora.parts()) and loads_all


def _optimizer_bytes(trainer: Trainer) -> int:
    """What this rank's share of the optimizer takes, from its first step on."""
    moments = sum(shard.numel() for shard in _shards(trainer, "shard_fp32_groups"))
    masters = sum(shard.numel() for shard in _shards(trainer, "shard_fp32_from_float16_groups"))
    return (moments + masters) * _BYTES_OF_MOMENTS + masters * _BYTES_OF_MASTER


def _shards(trainer: Trainer, groups: str) -> Iterator[Tensor]:
    for part in trainer.optimizer.chained_optimizers:
        if not part.is_stub_optimizer:
            yield from (shard for group in getattr(part, groups) for shard in group)

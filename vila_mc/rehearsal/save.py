"""A save, rehearsed as far as the disk: what it takes on the device and on the host."""

from collections.abc import Sequence
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import (
    determine_main_replica_uniform_distribution,
)
from megatron.core.dist_checkpointing.mapping import apply_factories, is_main_replica
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from torch import Tensor

from vila_mc.checkpoint.host_copy import bring_to_host
from vila_mc.checkpoint.state import run_state
from vila_mc.config.train import TrainConfig
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks
from vila_mc.rehearsal.record import Peak
from vila_mc.rehearsal.recorder import Recorder
from vila_mc.torch_on_cpu import do_nothing
from vila_mc.train.step import Trainer


def peaks_of_a_save(
    train: TrainConfig,
    ranks: Ranks,
    stages: Sequence[VilaModel],
    trainer: Trainer,
    recorder: Recorder,
) -> tuple[Peak, int]:
    """Of the device, and bytes of the host, while the state is brought to the host's memory."""
    memory, host = recorder.ledgers[recorder.device], recorder.ledgers["cpu"]
    memory.start()
    host.start()
    with recorder.during("save"):
        trainer.weights_are_finite()
        state = run_state(ranks, stages, trainer.optimizer, is_loading=False)
        mine = dict(enumerate(_written_here(state, ranks)))
        most_bytes = train.save_memory_bytes() if train.async_save else 0
        bring_to_host(trainer.optimizer, mine, most_bytes, do_nothing)
        peak, on_host = memory.peak(), host.bytes_at_peak
    return peak, on_host


def _written_here(state: dict[str, Any], ranks: Ranks) -> list[Tensor]:
    """What of a state this rank writes, divided as ``checkpoint.shard_writer`` has it divided.

    Ranks tell each other what they hold, which is the same on all data-parallel ones.
    """
    apply_factories(state)
    group = ranks.groups.dp_cp
    distribution = determine_main_replica_uniform_distribution(state, group)
    distribute_main_replicas_with_precomputed_distribution(state, group, distribution)
    return [
        entry.data
        for entry in nested_values(state)
        if isinstance(entry, ShardedTensor) and is_main_replica(entry.replica_id)
    ]

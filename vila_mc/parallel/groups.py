"""Start and end the process groups of a run."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from vila_mc.config.parallel import ParallelConfig
from vila_mc.errors import SetupError
from vila_mc.parallel.adam import group_step_adamw
from vila_mc.parallel.agreement import require_same
from vila_mc.parallel.cpu_backend import undo_cpu_backend, use_cpu_backend
from vila_mc.topology.layout import Coordinates, Layout


@dataclass(frozen=True)
class Ranks:
    """This process among all: its coordinates, device and process groups."""

    layout: Layout
    at: Coordinates
    rank: int
    device: torch.device
    groups: ProcessGroupCollection

    def is_first(self) -> bool:
        """Whether this is rank 0, the one that logs."""
        return self.rank == 0


@contextmanager
def distributed(
    parallel: ParallelConfig,
    *,
    seed: int,
    timeout_minutes: float = 30.0,
    same: Mapping[str, str] | None = None,
) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, or be the only one; leave them at the end.

    Args:
        parallel: degrees of parallelism; what they leave over is data parallel.
        seed: the same on all ranks. Tensor-parallel ranks derive different dropout seeds from it.
        timeout_minutes: a collective that waits longer fails on every rank.
        same: what all ranks must have in common, see ``require_same``.

    Raises:
        ConfigError: the world size does not divide, or ranks differ in ``same``.
        SetupError: there are more ranks than GPUs.
    """
    with ExitStack() as at_the_end:
        yield _join(parallel, seed, timeout_minutes, same or {}, at_the_end)


def _join(
    parallel: ParallelConfig,
    seed: int,
    timeout_minutes: float,
    same: Mapping[str, str],
    at_the_end: ExitStack,
) -> Ranks:
    has_gpu = torch.cuda.is_available()
    layout = Layout.of(parallel, int(os.environ.get("WORLD_SIZE", "1")))
    if has_gpu:
        device = torch.device("cuda", _local_rank())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        use_cpu_backend()
        at_the_end.callback(undo_cpu_backend)
    at_the_end.enter_context(group_step_adamw())
    _init_torch_distributed("nccl" if has_gpu else "gloo", timeout_minutes)
    at_the_end.callback(dist.destroy_process_group)
    require_same(same, device)  # first: other groups would hang where these differ
    at_the_end.callback(parallel_state.destroy_model_parallel)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
        distributed_timeout_minutes=timeout_minutes,  # type: ignore[arg-type]
    )
    model_parallel_cuda_manual_seed(seed)
    rank = dist.get_rank()
    # Nothing draws from these two today; what does tomorrow is repeatable.
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    return Ranks(
        layout=layout,
        at=layout.coordinates(rank),
        rank=rank,
        device=device,
        groups=ProcessGroupCollection.use_mpu_process_groups(),
    )


def _init_torch_distributed(backend: str, timeout_minutes: float) -> None:
    timeout = timedelta(minutes=timeout_minutes)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)


def _local_rank() -> int:
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise SetupError(
            f"this machine has {num_gpus} GPUs, but more ranks were started on it. Start at most "
            f"{num_gpus} ranks per machine."
        )
    return local_rank

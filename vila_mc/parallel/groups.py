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
from torch.distributed import (  # type: ignore[attr-defined]
    FileStore,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from vila_mc.config.parallel import ParallelConfig
from vila_mc.errors import SetupError
from vila_mc.parallel.adam import group_step_adamw
from vila_mc.parallel.agreement import require_same
from vila_mc.parallel.alone import short_ways_for_one
from vila_mc.parallel.cpu_backend import undo_cpu_backend, use_cpu_backend
from vila_mc.parallel.cpu_passes import fewer_passes
from vila_mc.parallel.deterministic import deterministic_algorithms
from vila_mc.parallel.frozen_layers import recompute_above_frozen_layers
from vila_mc.parallel.gradient_norm import norm_on_the_device
from vila_mc.processes import RESTARTS_OF_TORCHRUN, STORE_FILE, STORE_LISTENER
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
    deterministic: bool = False,
) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, or be the only one; leave them at the end.

    Args:
        parallel: degrees of parallelism; what they leave over is data parallel.
        seed: the same on all ranks. Tensor-parallel ranks derive different dropout seeds from it.
        timeout_minutes: a collective that waits longer fails on every rank.
        same: what all ranks must have in common, see ``require_same``.
        deterministic: whether every run computes the same bits, see ``deterministic_algorithms``.

    Raises:
        ConfigError: the world size does not divide, or ranks differ in ``same``.
        SetupError: there are more ranks than GPUs, or the environment forbids ``deterministic``.
    """
    with ExitStack() as at_the_end:
        if deterministic:
            at_the_end.enter_context(deterministic_algorithms())
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
        at_the_end.enter_context(fewer_passes())
        at_the_end.enter_context(short_ways_for_one())
    at_the_end.enter_context(group_step_adamw())
    at_the_end.enter_context(norm_on_the_device())
    at_the_end.enter_context(recompute_above_frozen_layers())
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
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    timeout = timedelta(minutes=timeout_minutes)
    if _is_one_machine(world_size):
        # They would listen where the name of the machine leads, for everyone to reach.
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    store = _store(world_size, timeout)
    if store is None:
        rank = world_size = -1  # for torch to read from the environment
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)


def _is_one_machine(world_size: int) -> bool:
    address = os.environ.get("MASTER_ADDR", "localhost")
    on_this = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return world_size in (1, on_this) or address == "localhost" or address.startswith("127.")


def _store(world_size: int, timeout: timedelta) -> Store | None:
    """Where ranks leave their addresses for each other; None for what torchrun has set up."""
    if world_size == 1:
        return HashStore()
    if STORE_FILE in os.environ:
        store: Store = FileStore(os.environ[STORE_FILE], world_size)
    elif STORE_LISTENER in os.environ:
        descriptor = int(os.environ[STORE_LISTENER])
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            world_size,
            is_master=descriptor >= 0,
            wait_for_workers=False,
            master_listen_fd=descriptor if descriptor >= 0 else None,
        )
    elif _is_restart_of_torchrun():
        # Its agent serves one store to all starts, in which gloo would find the addresses of dead
        # ranks.
        of_agent = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=False
        )
        store = PrefixStore(f"restart {os.environ[RESTARTS_OF_TORCHRUN]}", of_agent)
    else:
        return None
    store.set_timeout(timeout)
    return store


def _is_restart_of_torchrun() -> bool:
    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return serves and os.environ.get(RESTARTS_OF_TORCHRUN, "0") != "0"


def _local_rank() -> int:
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise SetupError(
            f"this machine has {num_gpus} GPUs, but more ranks were started on it. Start at most "
            f"{num_gpus} ranks per machine."
        )
    return local_rank

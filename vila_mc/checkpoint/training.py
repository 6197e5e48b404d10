"""Save and load the state of a training run, at any layout.

megatron.core.dist_checkpointing writes and reshards the tensors; a checkpoint becomes visible in
one rename, when every rank has written its part.
"""

import contextlib
import queue
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from vila_mc.checkpoint.manifest import (
    Manifest,
    checkpoint_name,
    delete_older,
    resolve_checkpoint,
)
from vila_mc.errors import CheckpointError, SetupError, user_error
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks

_OPTIMIZER_BYTES_PER_WEIGHT = 12
"""fp32 weight and two fp32 moments."""


class HasState(Protocol):
    """The learning-rate schedule, as far as a checkpoint needs it."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def save_checkpoint(
    directory: Path,
    manifest: Manifest,
    ranks: Ranks,
    stages: Sequence[VilaModel],
    optimizer: Any,
    scheduler: HasState,
    *,
    keep_last: int,
) -> Path:
    """Write one checkpoint; every rank must call this together.

    Returns:
        Its directory. Older checkpoints beyond ``keep_last`` are gone, this one is whole.

    Raises:
        SetupError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    final = directory / checkpoint_name(manifest.step)
    partial = final.with_name(f".{final.name}.partial")
    with _disk_errors_explained(directory):
        if ranks.is_first():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        _create_missing_moments(optimizer)
        state = _sharded_state(ranks, stages, optimizer, is_loading=False)
        state["scheduler"] = scheduler.state_dict()
        with _results_in_this_process():
            dist_checkpointing.save(
                state,
                str(partial),
                FullyParallelSaveStrategyWrapper(
                    TorchDistSaveShardedStrategy(), ranks.groups.dp_cp
                ),
                content_metadata=_content_metadata(),
                verify_integrity=True,
            )
        dist.barrier()
        if ranks.is_first():
            manifest.write(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            delete_older(directory, keep_last)
        dist.barrier()
    return final


def load_checkpoint(
    path: Path,
    ranks: Ranks,
    stages: Sequence[VilaModel],
    optimizer: Any,
    scheduler: HasState,
) -> Manifest:
    """Restore weights, optimizer and schedule; the position is in the returned manifest.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    directory, manifest = _open(path, stages)
    state = _sharded_state(ranks, stages, optimizer, is_loading=True)
    loaded = _load(state, directory)
    for name, stage in _named(stages):
        stage.load_state_dict(loaded[name])
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    return manifest


def load_weights(path: Path, stages: Sequence[VilaModel]) -> Manifest:
    """Restore the weights alone, as a new stage of training starts from the previous one.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    directory, manifest = _open(path, stages)
    state = {
        name: stage.sharded_state_dict(metadata=_content_metadata())
        for name, stage in _named(stages)
    }
    loaded = _load(state, directory)
    for name, stage in _named(stages):
        stage.load_state_dict(loaded[name])
    return manifest


def check_room(directory: Path, num_weights: int, weight_bytes: int) -> None:
    """Refuse to start when ``directory`` cannot take a checkpoint.

    Args:
        directory: where checkpoints go; it is created.
        num_weights: parameters of the whole model.
        weight_bytes: bytes of one weight.

    Raises:
        SetupError: it cannot be written, or one checkpoint does not fit.
    """
    with _disk_errors_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".write-probe"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    needed = num_weights * (weight_bytes + _OPTIMIZER_BYTES_PER_WEIGHT)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SetupError(
            f"{directory} has {free / 2**30:.2f} GiB free, but one checkpoint takes up to "
            f"{needed / 2**30:.2f} GiB. Free some space, or set train.output to another disk."
        )


def _open(path: Path, stages: Sequence[VilaModel]) -> tuple[Path, Manifest]:
    directory = resolve_checkpoint(path)
    manifest = Manifest.read(directory)
    manifest.require_same_model(stages[0].run, directory)
    return directory, manifest


def _load(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(
            state,
            str(directory),
            strict=StrictHandling.ASSUME_OK_UNEXPECTED,
            verify_integrity=True,
        )
    # torch's CheckpointException is not an Exception: it carries one failure per rank.
    except (CheckpointException, CheckpointingException, RuntimeError, OSError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{directory} cannot be loaded: {first_line[:300]}. It is damaged or incomplete; use "
            "an older step-* directory."
        ) from error
    return loaded


def _sharded_state(
    ranks: Ranks, stages: Sequence[VilaModel], optimizer: Any, *, is_loading: bool
) -> dict[str, Any]:
    metadata = {**_content_metadata(), "dp_cp_group": ranks.groups.dp_cp}
    weights = {name: stage.sharded_state_dict(metadata=metadata) for name, stage in _named(stages)}
    state: dict[str, Any] = dict(weights)
    state["optimizer"] = optimizer.sharded_state_dict(
        weights, is_loading=is_loading, metadata=metadata
    )
    return state


def _create_missing_moments(optimizer: Any) -> None:
    """Adam makes its moments in the first step; a checkpoint before that needs them too."""
    for part in optimizer.chained_optimizers:
        if part.optimizer is not None and part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def _named(stages: Sequence[VilaModel]) -> Iterator[tuple[str, VilaModel]]:
    """The names Megatron-Core's optimizer expects: model, or model0, model1 ... when virtual."""
    for index, stage in enumerate(stages):
        yield ("model" if len(stages) == 1 else f"model{index}"), stage


def _content_metadata() -> dict[str, Any]:
    """The only optimizer format of Megatron-Core 0.19.2 that every other layout can read."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


@contextlib.contextmanager
def _results_in_this_process() -> Iterator[None]:
    """Keep Megatron-Core 0.19.2 from starting a manager process per rank and save.

    It passes write results through a spawned multiprocessing.Manager, which imports the main
    module again (seconds) and outlives a rank that dies. A synchronous save needs no process.
    """
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        filesystem_async._results_queue = None


@contextlib.contextmanager
def _disk_errors_explained(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk, however it is reported, into a SetupError."""
    try:
        yield
    except OSError as error:
        raise user_error(error) or error from error
    except (CheckpointException, CheckpointingException, RuntimeError) as error:
        if "No space left" not in str(error) and "enough space" not in str(error):
            raise
        raise SetupError(
            f"no space left for a checkpoint in {directory}. Older checkpoints are untouched. "
            "Free some space and start again: the run resumes from the newest one."
        ) from error

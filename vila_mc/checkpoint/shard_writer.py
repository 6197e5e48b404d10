"""Write this rank's shards of a checkpoint, here and now or in a process of its own.

megatron.core.dist_checkpointing plans which rank writes what. Its own execution of the plan is not
used: it passes results through a spawned multiprocessing.Manager per rank, which imports the main
module again and outlives a rank that dies, it forgets the operating system's error, and it hashes
all files on rank 0 while training waits. Here a background save is a plain fork, whose copy of the
memory is the snapshot.
"""

import contextlib
import os
import pickle
import queue
import select
import signal
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from vila_mc.checkpoint.disk import Failure
from vila_mc.checkpoint.manifest import FileRecord
from vila_mc.checkpoint.state import content_metadata
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.megatron_patches import LATE_COLLECTOR, NO_MANAGER_PROCESS
from vila_mc.processes import fork_child

_WRITER_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Written:
    """What came of writing one rank's shards."""

    results: list[Any] = field(default_factory=list)
    """torch's record of where each shard stands; rank 0 makes the index of them."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass
class ShardPlan:
    """What this rank writes to ``directory``, and on rank 0 the index of all ranks' shards."""

    directory: Path
    writer: "_LateCollector"
    index: Any
    finalize_fns: list[Any] = field(default_factory=list)
    """Megatron-Core appends to it; what is to be done is done in save.py."""

    def copy_to_host(self) -> None:
        """Bring a GPU's tensors to the host's memory, which a forked process can read."""
        if torch.cuda.is_available():
            self.writer.collect()
            self.writer.write_buckets = FileSystemWriterAsync.preload_tensors(
                self.writer.write_buckets, True
            )

    def write(self) -> Written:
        """Write, flush and hash this rank's files. Never raises."""
        results: list[Any] = []
        files: dict[str, FileRecord] = {}
        try:
            if self.writer.write_buckets is None:
                self.writer.collect()
            for number, bucket in enumerate(self.writer.write_buckets):
                _, outcome = FileSystemWriterAsync.write_preloaded_data(
                    [self.writer.transforms], number, bucket, None, None, use_fsync=True
                )
                if isinstance(outcome, BaseException):
                    raise outcome
                results += outcome
                path, name, _ = bucket
                files[name] = FileRecord.of(Path(path))
        except Exception as error:
            return Written(failure=Failure.of(error, self.directory))
        return Written(results, files)

    def finish(self, results: list[list[Any]]) -> None:
        """Write the index of all shards, on rank 0, from the results of all ranks."""
        self.writer.finish(self.index, results)


class _LateCollector(FileSystemWriterAsync):  # type: ignore[misc]
    """Collects the tensors to be written not with the plan, but where they are written.

    Collecting copies every tensor that is a part of a greater one, as weights are: in a forked
    process that costs training nothing.
    """

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        collect: Any = super().prepare_write_data
        self._collect = partial(collect, plan, planner)

    def get_save_function_and_args(self) -> tuple[None, None, list[Any]]:
        return None, None, []  # what is to be done is ShardPlan.write

    def collect(self) -> None:
        """Fill ``write_buckets``."""
        with NO_MANAGER_PROCESS.applied(queue.Queue()):
            self._collect()


class _PlanOnly(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron-Core's plan without its execution."""

    def _get_save_and_finalize_callbacks(
        self, writer: Any, save_state_dict_ret: Any, async_strategy: str
    ) -> ShardPlan:
        index = save_state_dict_ret[1]
        if index is not None:
            # The plan of every rank, which only Megatron-Core's own cache of plans reads.
            del index.all_local_plans
        return ShardPlan(Path(writer.checkpoint_dir), writer, index)


def plan_shards(state: dict[str, Any], directory: Path, ranks: Ranks) -> ShardPlan:
    """Divide the writing of ``state`` among ranks; every rank must call this together."""
    with LATE_COLLECTOR.applied(_LateCollector):
        plan = dist_checkpointing.save(
            state,
            str(directory),
            FullyParallelSaveStrategyWrapper(_PlanOnly(), ranks.groups.dp_cp),
            validate_access_integrity=False,  # the wrapper does the same
            async_sharded_save=True,
            content_metadata=content_metadata(),
            async_strategy="mcore",
        )
    assert isinstance(plan, ShardPlan)
    return plan


class BackgroundWrite:
    """Writes a plan in a forked process, which ends with this one whatever happens to it."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan
        self._answer, answer_here = os.pipe()
        self._pid = fork_child(partial(_write_and_answer, plan, answer_here))
        os.close(answer_here)

    def is_done(self) -> bool:
        """Whether the process has answered or died."""
        return bool(select.select([self._answer], [], [], 0)[0])

    def result(self) -> Written:
        """Wait for the process to end. Never raises."""
        with open(self._answer, "rb") as answers:
            answer = answers.read()
        _, status = os.waitpid(self._pid, 0)
        if not answer:
            code = os.waitstatus_to_exitcode(status)
            death = RuntimeError(f"the process that writes a checkpoint ended with {code}")
            return Written(failure=Failure.of(death, self._plan.directory))
        written = pickle.loads(answer)  # our own child's
        assert isinstance(written, Written)
        return written

    def abandon(self) -> None:
        """End the process; what it wrote stays a partial checkpoint."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self.result()


def _write_and_answer(plan: ShardPlan, answer: int) -> None:
    """The whole work of the forked process: it writes the host's memory."""
    os.nice(_WRITER_NICENESS)
    with open(answer, "wb") as file:
        pickle.dump(plan.write(), file)

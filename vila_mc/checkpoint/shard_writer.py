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
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch import Tensor
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    SerializationFormat,
    _write_item,
)
from torch.distributed.checkpoint.planner import WriteItemType

from vila_mc.checkpoint.disk import Failure
from vila_mc.checkpoint.host_copy import bring_to_host
from vila_mc.checkpoint.manifest import FileRecord
from vila_mc.checkpoint.state import content_metadata
from vila_mc.errors import RankError
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.megatron_patches import PLAN_KEEPER
from vila_mc.processes import fork_child, usual_cause

_WRITER_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Written:
    """What came of writing one rank's shards."""

    results: list[Any] = field(default_factory=list)
    """torch's record of where each shard stands; rank 0 makes the index of them."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    failure: Failure | None = None


class ShardPlan:
    """What this rank writes to ``directory``, and on rank 0 the index of all ranks' shards.

    Nothing here raises because of the disk: what ``write`` returns says what failed.
    """

    def __init__(self, writer: "_PlanKeeper", index: Any) -> None:
        self.directory = Path(writer.checkpoint_dir)
        self.finalize_fns: list[Any] = []
        """Megatron-Core appends to it; what is to be done is done in save.py."""
        self._writer, self._index = writer, index
        plan, planner = writer.plan, writer.planner
        self._items = sorted(plan.items, key=lambda item: item.type != WriteItemType.BYTE_IO)
        self._data = [planner.resolve_data(item) for item in self._items]
        self._waiting: list[tuple[int, Tensor]] = []
        self._name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        self._file: BinaryIO | None = None
        self._results: list[Any] = []
        self._failure: Failure | None = None

    def bring_to_host(self, optimizer: Any, most_bytes: int) -> None:
        """Bring to the host what a forked process could not read; every rank must call this.

        Args:
            optimizer: whose state is a part of what is written.
            most_bytes: of the host's memory; what finds no room there is written at once.
        """
        tensors = {i: data for i, data in enumerate(self._data) if isinstance(data, Tensor)}
        self._waiting = bring_to_host(optimizer, tensors, most_bytes, self._put)
        if self._file is not None:
            self._try(self._file.flush)  # a forked process has a buffer of its own

    def write(self) -> Written:
        """Write what is not written yet, flush and hash this rank's file."""
        for number, values in self._waiting:
            self._put(number, values)
        record = self._try(self._end)
        if self._failure is not None:
            return Written(failure=self._failure)
        return Written(self._results, {self._name: record})

    def leave_to_fork(self) -> None:
        """Give up the file, which a forked process goes on with."""
        if self._file is not None:
            self._file.close()

    def finish(self, results: list[list[Any]]) -> None:
        """Write the index of all shards, on rank 0, from the results of all ranks."""
        self._writer.finish(self._index, results)

    def _put(self, number: int, values: Tensor) -> None:
        """Write a tensor that was brought here."""
        self._try(lambda: self._write_item(self._begun(), number, values))

    def _try(self, action: Callable[[], Any]) -> Any:
        """Do it, if nothing has failed yet."""
        if self._failure is None:
            try:
                return action()
            except Exception as error:
                self._failure = Failure.of(error, self.directory)
        return None

    def _end(self) -> FileRecord:
        stream = self._begun()
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        return FileRecord.of(self.directory / self._name)

    def _begun(self) -> BinaryIO:
        """The file, which begins with all that is on the host already."""
        if self._file is None:
            self._file = open(self.directory / self._name, "wb")  # noqa: SIM115
            for number, data in enumerate(self._data):
                if not isinstance(data, Tensor):
                    self._write_item(self._file, number, data)
                elif data.device.type == "cpu":
                    self._write_item(self._file, number, _alone(data.detach()))
        return self._file

    def _write_item(self, stream: BinaryIO, number: int, data: Any) -> None:
        self._results.append(
            _write_item(
                self._writer.transforms,
                stream,  # type: ignore[arg-type]
                data,
                self._items[number],
                self._name,
                SerializationFormat.TORCH_SAVE,
            )
        )


def _alone(tensor: Tensor) -> Tensor:
    """The same values in memory of their own extent: a view is saved with all it is a view of."""
    is_view = tensor.untyped_storage().size() != tensor.numel() * tensor.itemsize
    return tensor.clone() if is_view else tensor


class _PlanKeeper(FileSystemWriterAsync):  # type: ignore[misc]
    """Keeps what is to be written; the original copies it, and starts a process to write it."""

    plan: Any
    planner: Any

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        self.plan, self.planner = plan, planner

    def get_save_function_and_args(self) -> tuple[None, None, list[Any]]:
        return None, None, []  # what is to be done is ShardPlan.write


class _PlanOnly(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron-Core's plan without its execution."""

    def _get_save_and_finalize_callbacks(
        self, writer: Any, save_state_dict_ret: Any, async_strategy: str
    ) -> ShardPlan:
        index = save_state_dict_ret[1]
        if index is not None:
            # The plan of every rank, which only Megatron-Core's own cache of plans reads.
            del index.all_local_plans
        return ShardPlan(writer, index)


def plan_shards(state: dict[str, Any], directory: Path, ranks: Ranks) -> ShardPlan:
    """Divide the writing of ``state`` among ranks; every rank must call this together."""
    with PLAN_KEEPER.applied(_PlanKeeper):
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
        plan.leave_to_fork()

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
            return Written(failure=_of_death(code, self._plan.directory))
        written = pickle.loads(answer)  # our own child's
        assert isinstance(written, Written)
        return written

    def abandon(self) -> None:
        """End the process; what it wrote stays a partial checkpoint."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self.result()


def _of_death(code: int, directory: Path) -> Failure:
    """What a process that left no answer tells by its exit code, negative for a signal's number."""
    what = f"the process that writes a checkpoint ended with {code}"
    failure = Failure.of(RuntimeError(what), directory)
    if code >= 0 or failure.errno is not None:
        return failure
    cause = usual_cause(-code)
    often = f" (most often {cause})" if cause else ""
    killed = RankError(
        f"the process that writes a checkpoint for rank {dist.get_rank()} was killed by "
        f"{signal.Signals(-code).name}{often}"
    )
    return Failure(what, explanation=killed)


def _write_and_answer(plan: ShardPlan, answer: int) -> None:
    """The whole work of the forked process: it writes the host's memory."""
    os.nice(_WRITER_NICENESS)
    with open(answer, "wb") as file:
        pickle.dump(plan.write(), file)

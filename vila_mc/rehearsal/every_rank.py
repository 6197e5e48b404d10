"""Rehearse one rank of every distinct coordinate of a layout, each in a process of its own."""

import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, RankError, SetupError, user_error
from vila_mc.parallel.installed import has_transformer_engine
from vila_mc.processes import fork_child
from vila_mc.rehearsal.device import compile_guard
from vila_mc.rehearsal.first_steps import Batch, batch_of_a_rank
from vila_mc.rehearsal.ledger import place_of
from vila_mc.rehearsal.match import Matching, match
from vila_mc.rehearsal.one_rank import rehearse_rank
from vila_mc.rehearsal.record import RankRecord
from vila_mc.rehearsal.refusals import refuse_what_cannot_be_rehearsed
from vila_mc.topology.layout import Coordinates, Layout

_PER_STAGE = 2
"""Microbatches to each stage: more add nothing to the peak, and to the rest in proportion."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A rank whose step does not get to its end."""

    rank: int
    error: str
    where: str
    """``file:line`` of vila_mc or Megatron-Core."""
    is_users: bool
    """Whether a setting is to be changed, not the code."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of rehearsing a recipe."""

    config: RunConfig
    layout: Layout
    microbatches: int
    """Of a whole step, of one rank."""
    batch: Batch
    records: list[RankRecord]
    """By rank; those that failed are not among them."""
    failures: list[Failure]
    matching: Matching
    seconds: float


def rehearse(config: RunConfig, world_size: int, first_steps: int = 0) -> Rehearsal:
    """Rehearse a run of ``world_size`` ranks, with as many processes at once as there are cores.

    Args:
        config: the whole configuration, with ``train.micro_batch``.
        world_size: ranks that are played.
        first_steps: of which the fullest microbatch is taken, where the datasets are here; 0 for
            rows full of images.

    Raises:
        ConfigError: the run cannot be rehearsed, or its layout does not divide.
        DataError: a dataset is here and cannot be used.
        SetupError: there is no compiler, or this torch is no build for CUDA.
        RankError: a process of ours died.
    """
    started = time.monotonic()
    refuse_what_cannot_be_rehearsed(config)
    if has_transformer_engine():
        raise SetupError(
            "Transformer Engine is installed here, and its kernels cannot be rehearsed. Rehearse "
            "in an environment without it, such as the one of tools/setup_venv.sh."
        )
    layout = Layout.of(config.parallel, world_size)
    microbatches = config.train.microbatches(layout.data)
    batch = batch_of_a_rank(config, layout.data, first_steps)
    rehearsed = min(microbatches, _PER_STAGE * layout.pipeline)
    ranks = [
        layout.rank(Coordinates(tensor=tensor, data=0, pipeline=pipeline))
        for pipeline in range(layout.pipeline)
        for tensor in range(layout.tensor)
    ]
    with tempfile.TemporaryDirectory(prefix="vila_mc-rehearsal-") as name:
        folder = Path(name)
        guard = compile_guard(folder)
        rehearse_one = partial(rehearse_rank, num_microbatches=rehearsed, batch=batch.rows)
        _run_all(folder, ranks, lambda rank: rehearse_one(config, world_size, rank, guard))
        results = [folder / f"{rank}.json" for rank in ranks]
        records = [RankRecord.from_json(path.read_bytes()) for path in results if path.exists()]
        failed = [folder / f"{rank}.failure" for rank in ranks]
        failures = [_FAILURES.validate_json(p.read_bytes()) for p in failed if p.exists()]
    users = next((failure for failure in failures if failure.is_users), None)
    if users is not None:
        raise ConfigError(users.error)
    return Rehearsal(
        config=config,
        layout=layout,
        microbatches=microbatches,
        batch=batch,
        records=records,
        failures=failures,
        matching=match(records),
        seconds=time.monotonic() - started,
    )


_FAILURES = TypeAdapter(Failure)


def _run_all(folder: Path, ranks: Sequence[int], work: Callable[[int], RankRecord]) -> None:
    """Fork a process for each rank; their results are files in ``folder``."""
    waiting, running = deque(ranks), dict[int, int]()
    most = max(1, len(os.sched_getaffinity(0)))
    while waiting or running:
        while waiting and len(running) < most:
            rank = waiting.popleft()
            running[fork_child(partial(_rehearse_into, folder, rank, work))] = rank
        process, status = os.wait()
        rank_of_it = running.pop(process, None)
        if rank_of_it is not None and os.waitstatus_to_exitcode(status):
            raise RankError(
                f"the process that rehearsed rank {rank_of_it} ended with "
                f"{os.waitstatus_to_exitcode(status)}. If memory ran out, free some."
            )


def _rehearse_into(folder: Path, rank: int, work: Callable[[int], RankRecord]) -> None:
    """The whole work of a process."""
    try:
        record = work(rank)
    except Exception as error:
        explained = user_error(error)
        said = str(explained or error).strip().splitlines() or [""]
        failure = Failure(
            rank=rank,
            error=said[0] if explained else f"{type(error).__name__}: {said[0]}",
            where=innermost(error),
            is_users=explained is not None,
        )
        (folder / f"{rank}.failure").write_bytes(_FAILURES.dump_json(failure))
        return
    (folder / f"{rank}.json").write_bytes(record.to_json())


def innermost(error: BaseException) -> str:
    """The place of ours or of Megatron-Core that an error comes from."""
    places = [
        f"{place}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if (place := place_of(frame.filename)) is not None
    ]
    return places[-1] if places else "outside"

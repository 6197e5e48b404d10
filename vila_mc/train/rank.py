"""What each rank of a training run does, from its start to its exit code."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vila_mc.config.fp8 import Fp8Recipe
from vila_mc.config.run import RunConfig
from vila_mc.errors import (
    ExitCode,
    HeldOutputError,
    RankError,
    SetupError,
    VilaError,
    say,
    user_error,
)
from vila_mc.observe.history import Ends
from vila_mc.processes import end_with_parent
from vila_mc.topology.layout import Layout
from vila_mc.train.faults import StopRequest, deadline_of, end_at_once_when_stopped
from vila_mc.train.rank_status import STATUS_DIRECTORY, Cause, StatusWriter
from vila_mc.train.stacks import keep_stacks

LAUNCHED_BY_US = "VILA_MC_LAUNCHER"
"""Environment variable with the process id of our launcher."""

_LOST_PEER = (
    # gloo
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Broken pipe",
    "Connection refused",
    "connectFullMesh failed",
    # NCCL and its watchdog
    "NCCL communicator was aborted",
    "caught collective operation timeout",
    "watchdog thread terminated",
    "ncclRemoteError",
    "remote process exited or there was a network error",
    "ncclSystemError",
    # torch's store, through which ranks find each other
    "Connection was likely closed",
    "wait timeout after",
    "Timeout waiting for key",
)
"""What each library says on a rank that is left alone."""
_LONGEST_REASON = 200
"""Characters of it that are shown: NCCL adds paths, versions and stack frames."""


def train_rank(config: RunConfig) -> int:
    """Train on this rank.

    Returns:
        the exit code: OK if it trained to the end, INTERRUPTED or REQUEUE if it stopped on request
        after saving, USER_ERROR for a mistake, FAULT for anything else, as another rank's death.
    """
    end_at_once_when_stopped()
    stop = StopRequest(deadline_of(config.train, os.environ, time.time()))
    ends = Ends(config.train.output)

    def ended(code: ExitCode, cause: str) -> None:
        if STATUS_DIRECTORY not in os.environ and _is_first():  # our launcher records it itself
            ends.record(code, cause)

    return run_rank(lambda: _train(config, stop), ended)


def run_rank(work: Callable[[], ExitCode], ended: Callable[[ExitCode, str], None]) -> int:
    """Do a rank's work, and tell its launcher how it ended; signals are the caller's concern.

    Args:
        work: what is done; it returns the exit code.
        ended: told the exit code and, of a mistake or fault, its cause; not where another run holds
            the output.

    Returns:
        the exit code: that of the work, USER_ERROR for a mistake, FAULT for the loss of another
        rank and what a rank itself found wrong. Other errors are raised.
    """
    launcher = os.environ.get(LAUNCHED_BY_US)
    end_with_parent(signal.SIGTERM, int(launcher) if launcher else None)
    directory = os.environ.get(STATUS_DIRECTORY)
    status = None
    if directory:
        status = StatusWriter(Path(directory), int(os.environ["RANK"]))
        keep_stacks(Path(directory), int(os.environ["RANK"]))
    try:
        code = work()
        ended(code, "")
        return code
    except RankError as error:  # found by a rank itself: another start may help
        _report("fault", error, status, error)
        ended(ExitCode.FAULT, str(error))
        return ExitCode.FAULT
    except Exception as error:
        explained, lost = user_error(error), lost_peer(error)
        if explained is not None:
            is_held = isinstance(explained, HeldOutputError)
            _report("held" if is_held else "user", explained, status, error)
            if not is_held:
                ended(ExitCode.USER_ERROR, str(explained))
            return ExitCode.USER_ERROR
        if lost is not None:
            _report("lost", lost, status, error)
            ended(ExitCode.FAULT, str(lost))
            return ExitCode.FAULT
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        if status is not None:
            status.end("fault", cause, error)
        ended(ExitCode.FAULT, cause)
        raise


def lost_peer(error: BaseException) -> RankError | None:
    """``error`` as the loss of another rank; None if it is something else."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if any(sign in line for sign in _LOST_PEER)]
    return (
        RankError(f"lost contact with another rank: {said[0][:_LONGEST_REASON]}") if said else None
    )


def rank_and_world_size(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which rank this is of how many, as a launcher says; rank 0 of 1 without one.

    Raises:
        SetupError: it says only half of it, or what cannot be.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return 0, 1
    # Our own launcher lets ranks meet in its own way.
    meeting = () if LAUNCHED_BY_US in environment else ("MASTER_ADDR", "MASTER_PORT")
    said = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", *meeting)}
    rank, world_size = said["RANK"], said["WORLD_SIZE"]
    is_whole = all(said.values()) and rank.isdecimal() and world_size.isdecimal()
    if not is_whole or int(rank) >= int(world_size):
        shown = ", ".join(f"{name} is {value or 'not set'}" for name, value in said.items())
        raise SetupError(
            f"the environment names a rank of a launcher, but not rightly: {shown}. Unset RANK and "
            "WORLD_SIZE to have ranks started here, or start under a launcher that sets them all."
        )
    return int(rank), int(world_size)


def _emulate(recipe: Fp8Recipe) -> None:
    """Before megatron.core is imported. Raises SetupError where there is a GPU, or no wheel."""
    from vila_mc.emulation.extension.capability import B200, H100
    from vila_mc.emulation.install import install

    install(B200 if recipe == "mxfp8" else H100)


def _train(config: RunConfig, stop: StopRequest) -> ExitCode:
    if config.train.fp8.emulation:
        _emulate(config.train.fp8.recipe)
    from vila_mc.kernels import native
    from vila_mc.model.fusions import fusions_line
    from vila_mc.model.layer_specs import layers_line
    from vila_mc.parallel.adam import optimizer_line
    from vila_mc.parallel.agreement import greatest
    from vila_mc.parallel.groups import distributed
    from vila_mc.parallel.installed import optional_packages
    from vila_mc.train.identity import identity
    from vila_mc.train.loop import TrainingLoop
    from vila_mc.train.micro_batch import with_micro_batch
    from vila_mc.train.passes import with_steps
    from vila_mc.train.start import training_data

    rank, world_size = rank_and_world_size(os.environ)
    layout = Layout.of(config.parallel, world_size)
    config.train.check_load()
    config, micro_batch_line = with_micro_batch(config, layout)
    config.check_world(layout.world_size())
    at = layout.coordinates(rank)
    with (
        # First: the loader's workers are forked from here, with no weights, GPU or connections yet.
        training_data(config, layout, at) as data,
        distributed(
            config.parallel,
            seed=config.train.seed,
            timeout_minutes=config.train.timeout_minutes,
            deterministic=config.train.deterministic,
            same=identity(
                config,
                [reader.manifest for reader in data.readers],
                [reader.manifest for reader in data.validation_readers],
            ),
        ) as ranks,
    ):
        if ranks.is_first():
            used = f"{layers_line(config)}, {optimizer_line()}"
            with_what = f"{optional_packages()}; {fusions_line(config)}"
            say(f"{used}; {with_what}; device {ranks.device.type}")
            if micro_batch_line:
                say(micro_batch_line)
            missing = native.missing(ranks.device.type)
            if missing is not None:
                say(f"warning: {missing}", to_stderr=True)
        config = with_steps(config, data.readers)
        loop = TrainingLoop(config, ranks, data, stop)
        stop.listen()
        try:
            state = loop.fit()
            # Together, as long as all are there.
            asked = greatest(stop.code or ExitCode.OK, ranks.device)
        finally:
            loop.close()
    return ExitCode.OK if state.step == config.train.steps else ExitCode(asked)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _report(cause: Cause, error: VilaError, status: StatusWriter | None, raised: Exception) -> None:
    """To our launcher; without it to a person, and to torchrun through its error file."""
    if status is not None:
        status.end(cause, str(error), raised)
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    say(f"error: {error}", to_stderr=True)

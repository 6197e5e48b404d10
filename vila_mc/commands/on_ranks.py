"""Questions to a model on several ranks: started here, or by a launcher such as torchrun."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import AskingOptions
from vila_mc.commands.command import naming_flags
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, ExitCode, say
from vila_mc.train.sayings import Sayings

if TYPE_CHECKING:
    from vila_mc.train.faults import StopRequest


@dataclass(frozen=True, kw_only=True)
class SharedAskingOptions(AskingOptions):
    """Who is asked, on how many ranks."""

    ranks: Annotated[PositiveInt | None, Argument("N")] = None
    """Processes that share the work, each with a GPU where there are any (default: 1; under a
    launcher such as torchrun, those that it has started)."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Work that ranks do together."""

    module: str
    """The command's, which every rank runs."""
    given: Sequence[str]
    """Its arguments."""
    tensor: int | None
    """Ranks that hold one copy of the model together; all of them if None."""
    sayings: Sayings
    """What a person is told where ranks are stopped or fail."""

    def tensor_of(self, world_size: int) -> int:
        """Ranks that hold one copy, of so many. Raises ConfigError: they do not divide."""
        tensor = world_size if self.tensor is None else self.tensor
        if world_size % tensor:
            raise ConfigError(
                f"{world_size} ranks do not divide into copies of the model on {tensor} each. "
                f"Start a multiple of {tensor}.",
                option="tensor",
            )
        return tensor


def on_ranks(
    options: SharedAskingOptions,
    shared: Shared,
    work: "Callable[[int, StopRequest | None], int]",
) -> int:
    """Do the work on the ranks that the options name.

    Args:
        options: of the command.
        shared: what ranks do together.
        work: given the ranks of a copy and, on one of several ranks, what asks it to stop. Only the
            first rank is heard; the others must write nothing.

    Returns:
        the exit code.

    Raises:
        VilaError: ranks and options do not fit; on one rank also what ``work`` raises.
    """
    if "RANK" in os.environ:
        return _be_rank(options, shared, work)
    tensor = shared.tensor_of(options.ranks or 1)
    if options.ranks in (None, 1):
        return work(tensor, None)
    assert options.ranks is not None
    return _launch(options.ranks, shared)


def is_first_rank() -> bool:
    """Whether this process is the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def listening(stop: "StopRequest | None") -> "StopRequest | None":
    """Take over the stop signals of a rank that has begun, of several.

    Where there is one rank, Ctrl-C ends it as it ends every command.
    """
    if stop is not None:
        stop.listen()
    return stop


def _launch(ranks: int, shared: Shared) -> int:
    from vila_mc.train.launch import launch
    from vila_mc.train.stop_signals import StopSignals

    command = ["-P", "-m", shared.module, *shared.given]
    with StopSignals(shared.sayings) as stop:
        return launch(command, ranks=ranks, stop=stop).code


def _be_rank(
    options: SharedAskingOptions,
    shared: Shared,
    work: "Callable[[int, StopRequest | None], int]",
) -> int:
    from vila_mc.train.faults import StopRequest, end_at_once_when_stopped
    from vila_mc.train.rank import rank_and_world_size, run_rank

    end_at_once_when_stopped()
    stop = StopRequest()

    def as_rank() -> ExitCode:
        with naming_flags(type(options)), _only_first_is_heard():
            _, world_size = rank_and_world_size(os.environ)
            if options.ranks not in (None, world_size):
                raise ConfigError(
                    f"ranks is {options.ranks}, but the launcher has started {world_size}. Leave "
                    "it out there.",
                    option="ranks",
                )
            try:
                return ExitCode(work(shared.tensor_of(world_size), stop))
            except KeyboardInterrupt as interrupt:
                say(str(interrupt) or "interrupted", to_stderr=True)
                return stop.code or ExitCode.INTERRUPTED

    return run_rank(as_rank, lambda code, cause: None)


@contextmanager
def _only_first_is_heard() -> Iterator[None]:
    if is_first_rank():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield

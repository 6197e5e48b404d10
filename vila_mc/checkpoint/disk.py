"""What goes wrong on a disk, said in one line and on every rank."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from vila_mc.errors import SetupError, VilaError, user_error
from vila_mc.parallel.groups import Ranks

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ALMOST_NOTHING_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank could not do its part; can be sent to the other ranks."""

    what: str
    errno: int | None = None
    filename: str | None = None
    explanation: VilaError | None = None
    """What it is to a person, where that is known already."""

    @staticmethod
    def of(error: BaseException, directory: Path) -> "Failure":
        """The operating system's error behind ``error``, if there is one.

        Writers above the file system often replace it by an error of their own, so the chain of
        causes is searched; where even that is lost, a disk without room is taken for the cause.
        """
        if isinstance(error, VilaError):
            return Failure(repr(error), explanation=error)
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.errno is not None:
                return Failure(repr(error), cause.errno, cause.filename)
        with contextlib.suppress(OSError):
            if shutil.disk_usage(directory).free < _ALMOST_NOTHING_BYTES:
                return Failure(repr(error), errno.ENOSPC)
        return Failure(repr(error))

    def explained(self, directory: Path) -> VilaError | None:
        """The failure as something a person can put right; None if it is a fault of ours."""
        if self.errno in _FULL:
            return SetupError(
                f"no space left in {directory}. The checkpoints that are there are untouched. "
                "Free some space and start again: the run resumes from the newest one."
            )
        is_within = self.filename != str(directory)  # else it could not be made at the start
        if self.errno == errno.ENOENT and is_within:
            return lost_output(directory)
        if self.errno is None:
            return self.explanation
        where = self.filename or str(directory)
        return user_error(OSError(self.errno, os.strerror(self.errno), where))


def lost_output(directory: Path) -> SetupError:
    """That ``train.output`` is no longer the directory that the run began in."""
    by_now = (
        "was replaced by another directory"
        if directory.exists()
        else "is gone: it was removed, moved or unmounted"
    )
    return SetupError(
        f"train.output {directory} {by_now} while the run went on. Put it back and start again: "
        "the run resumes from its newest checkpoint."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def disk_errors_explained(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a SetupError."""
    try:
        yield
    except OSError as error:
        raise Failure.of(error, directory).explained(directory) or error from error


def raise_on_every_rank(failure: Failure | None, directory: Path) -> None:
    """Fail everywhere with the same error if any rank has failed; every rank must call this.

    Raises:
        SetupError: a disk is full or cannot be written.
        RuntimeError: another failure.
    """
    failures: list[Failure | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for rank, theirs in enumerate(failures):
        if theirs is not None:
            raise theirs.explained(directory) or RuntimeError(
                f"rank {rank} could not save to {directory}: {theirs.what}"
            )


def on_first_rank(ranks: Ranks, action: Callable[[], object], directory: Path) -> None:
    """Do something on rank 0; if that fails, every rank fails with its error.

    Raises:
        VilaError: it was a mistake, or a disk that is full or cannot be written.
        RuntimeError: another failure.
    """
    failure = None
    if ranks.is_first():
        try:
            action()
        except (VilaError, OSError, RuntimeError) as error:
            failure = Failure.of(error, directory)
    raise_on_every_rank(failure, directory)

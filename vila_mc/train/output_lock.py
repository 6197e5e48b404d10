"""One run at a time in one output directory, and one directory for all of its ranks."""

import secrets
import socket
from pathlib import Path

import torch.distributed as dist

from vila_mc.checkpoint.disk import Failure, raise_on_every_rank
from vila_mc.errors import SetupError
from vila_mc.files import Lock
from vila_mc.parallel.groups import Ranks

_PATIENCE_SECONDS = 30.0
"""A run whose launcher was killed may still be saving when it is started again."""


def lock_output(directory: Path) -> Lock:
    """Hold ``train.output``, which must exist. Raises SetupError: another run holds it."""
    try:
        return Lock(directory, _PATIENCE_SECONDS)
    except BlockingIOError:
        raise SetupError(
            f"another run is writing to {directory}. Wait for it or stop it, or set train.output "
            "to another directory."
        ) from None


def require_shared(directory: Path, ranks: Ranks) -> None:
    """Refuse a ``train.output`` that is another directory on another machine.

    Each rank writes its own part of a checkpoint, which would be whole nowhere. Every rank must
    call this together.

    Raises:
        SetupError: on every rank, with the machine that sees another directory.
    """
    name = [f".shared-{secrets.token_hex(8)}"]  # no file system has cached that it is not there
    if ranks.is_first():
        (directory / name[0]).touch()
    dist.broadcast_object_list(name, device=ranks.device)
    failure = None
    if not (directory / name[0]).exists():
        explanation = SetupError(
            f"train.output {directory} is another directory on {socket.gethostname()} (rank "
            f"{ranks.rank}) than on that of rank 0, so no checkpoint would be whole. Name one that "
            "all machines share."
        )
        failure = Failure(str(explanation), explanation=explanation)
    try:
        raise_on_every_rank(failure, directory)
    finally:
        if ranks.is_first():
            (directory / name[0]).unlink(missing_ok=True)

"""One run at a time in one output directory, and one directory for all of its ranks."""

import secrets
import socket
from pathlib import Path

import torch.distributed as dist

from vila_mc.checkpoint.disk import Failure, lost_output, on_first_rank, raise_on_every_rank
from vila_mc.checkpoint.retention import check_room
from vila_mc.config.train import TrainConfig
from vila_mc.errors import HeldOutputError, SetupError, say
from vila_mc.files import Lock, identity_of
from vila_mc.parallel.groups import Ranks

_PATIENCE_SECONDS = 30.0
"""A run whose launcher was killed may still be saving when it is started again."""


class OwnOutput:
    """A run's ``train.output``, held until ``release``. Every rank makes one, together.

    Args:
        config: where checkpoints go and how many there will be.
        ranks: this rank and its groups.
        one_checkpoint: bytes of one.

    Raises:
        SetupError: on every rank; there is no room, it cannot be written, another run holds it, or
            it is another directory on another machine.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, one_checkpoint: int) -> None:
        self._directory = config.output
        self._lock: Lock | None = None

        def take() -> None:
            warning = check_room(config, one_checkpoint)
            self._lock = _locked(config.output)
            if warning is not None:
                say(f"warning: {warning}")

        on_first_rank(ranks, take, config.output)
        _require_shared(config.output, ranks)
        self._identity = identity_of(config.output)

    def require_in_place(self) -> None:
        """Raises SetupError where another directory stands by now, which the lock does not hold."""
        if identity_of(self._directory) not in (self._identity, None):
            raise lost_output(self._directory)

    def release(self) -> None:
        """Let another run have it."""
        if self._lock is not None:
            self._lock.release()


def _locked(directory: Path) -> Lock:
    """Hold a directory, which must exist. Raises HeldOutputError: another run holds it."""
    try:
        return Lock(directory)
    except BlockingIOError:
        say(f"another run is writing to {directory}; waiting {_PATIENCE_SECONDS:.0f} s for its end")
    try:
        return Lock(directory, _PATIENCE_SECONDS)
    except BlockingIOError:
        raise HeldOutputError(
            f"another run is writing to {directory}. Wait for it or stop it, or set train.output "
            "to another directory."
        ) from None


def _require_shared(directory: Path, ranks: Ranks) -> None:
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

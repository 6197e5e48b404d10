"""One run at a time in one output directory."""

import errno
import fcntl
import os
import time
from pathlib import Path

from vila_mc.errors import SetupError


class OutputLock:
    """Holds ``directory`` until ``release`` or the death of this process and of what it forked.

    A run whose launcher was killed may still be saving when it is started again.

    Args:
        directory: it must exist.
        patience_seconds: how long to wait for another run to end.

    Raises:
        SetupError: another run holds it.
    """

    def __init__(self, directory: Path, patience_seconds: float = 30.0) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY)
        ends = time.monotonic() + patience_seconds
        while not _try_lock(self._descriptor):
            if time.monotonic() > ends:
                os.close(self._descriptor)
                raise SetupError(
                    f"another run is writing to {directory}. Wait for it or stop it, or set "
                    "train.output to another directory."
                )
            time.sleep(0.1)

    def release(self) -> None:
        """Let another run have it."""
        os.close(self._descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems cannot lock a directory; a run there is not protected.
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return True

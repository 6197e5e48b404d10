"""Files and directories that appear whole or not at all; one lock, one hasher. Imports nothing.

What is to become ``NAME`` grows beside it as ``.NAME.partial`` and is renamed when it is complete
and on the disk. A partial that a killed process left behind is removed by the next one, and so is
anything else under that name, without following it: in a folder that others write to, a link put
there would lead to a file of their choice.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_WITHOUT_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What network file systems say that cannot lock."""


def partial_path(final: Path) -> Path:
    """Where what will be ``final`` grows. Raises IsADirectoryError of ``/`` and ``.``, beside which
    there is nothing."""
    if not final.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
    return final.with_name(f".{final.name}.partial")


def final_name(partial: str) -> str:
    """The inverse of ``partial_path`` for a name without folders; other names are as they were."""
    is_partial = partial.startswith(".") and partial.endswith(".partial")
    return partial.removesuffix(".partial").removeprefix(".") if is_partial else partial


def unfinished_path(final: Path) -> Path:
    """Where what has been done of a file so far is kept, for a person to see."""
    return final.with_name(f"{final.stem}.unfinished{final.suffix}")


@contextmanager
def whole_file(final: Path) -> Iterator[BinaryIO]:
    """A new file to write, which replaces ``final`` at the end; its folder is made if need be.

    Raises:
        OSError: it cannot be written, or is a pipe or a device, which root would put a file in the
            place of; ``final`` is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise FileExistsError(errno.EEXIST, "Is a pipe or device", str(final))
    partial = partial_path(final)
    remove(partial)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, 0o666), "w+b") as file:
            yield file
            flush(file)
        partial.replace(final)
    except BaseException:
        remove(partial)
        raise
    sync_directory(final.parent)


def write_whole(final: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) whole or not at all. Raises OSError."""
    with whole_file(final) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(final: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read, whole or not at all. Raises OSError."""
    write_whole(final, json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_directory(final: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes ``final`` at the end, in place of what stands there.

    Raises:
        OSError: it cannot be written; ``final`` is as it was.
    """
    partial = new_partial_directory(final)
    try:
        yield partial
        put_in_place(partial, final)
    finally:
        remove(partial)


def new_partial_directory(final: Path) -> Path:
    """The empty directory in which ``final`` grows."""
    partial = partial_path(final)
    remove(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    return partial


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a complete directory to ``final``; what stood there goes only when that is done."""
    sync_directory(partial)
    old = partial_path(final.with_name(f"{final.name}.old"))
    remove(old)
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    sync_directory(final.parent)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a directory with all in it, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Wait until the disk has what was written."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(path: Path) -> tuple[int, int] | None:
    """Which file or directory stands at ``path`` now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_held(path: Path) -> bool:
    """Whether a process holds a file or directory, which must exist."""
    try:
        Lock(path).release()
    except BlockingIOError:
        return True
    return False


class Lock:
    """A file or directory that one process holds, until ``release`` or its death.

    What the process forks holds it too, so that a background save outlives its trainer safely; that
    is why the filelock package, whose locks do not pass through a fork, does not do here. On a file
    system without locks nothing is held and nobody is kept out.

    Args:
        path: it must exist.
        patience_seconds: how long to wait for another process.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, path: Path, patience_seconds: float = 0.0) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        ends = time.monotonic() + patience_seconds
        try:
            while not self._is_taken():
                if time.monotonic() >= ends:
                    raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))
                time.sleep(0.1)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have it; once is enough, twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_taken(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        return True

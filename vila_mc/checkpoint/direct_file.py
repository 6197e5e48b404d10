"""A large new file, written past the page cache.

A conversion writes more than the cache holds. Through the cache every page is allocated, cleared,
copied into and written back later, which took longer than the disk needs (benchmarks/convert.py),
and what other programs had cached is gone.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 4096
"""What a disk takes at once: where it is written and how many bytes must be multiples."""
_BUFFER_BYTES = 2**24


class DirectFile(AbstractContextManager["DirectFile"]):
    """A file that is written from its beginning to its end.

    Args:
        path: the file to make; an older one is replaced.
        least_bytes: room to reserve. A full disk shows at once, and writing is cheaper.
        with_sha256: also compute the checksum, in a thread while the disk writes.

    Raises:
        OSError: there is no room, or the file cannot be made.
    """

    def __init__(self, path: Path, least_bytes: int, *, with_sha256: bool = False) -> None:
        self.num_bytes = 0
        """Bytes given so far."""
        self._file = _open(path, least_bytes)
        self._buffer = np.frombuffer(mmap.mmap(-1, _BUFFER_BYTES), np.uint8)  # starts a page
        self._filled = 0
        self._digest = hashlib.sha256() if with_sha256 else None
        self._hasher = ThreadPoolExecutor(max_workers=1)

    def write(self, data: Any) -> int:
        """Append the bytes of a buffer."""
        values = np.frombuffer(data, np.uint8)
        for start in range(0, len(values), _BUFFER_BYTES):
            self._append(values[start : start + _BUFFER_BYTES])
        return len(values)

    def sha256(self) -> str:
        """Checksum of the closed file, as hex digits."""
        assert self._digest is not None, "it was not asked for"
        assert self._file < 0, "the file is not closed"
        return self._digest.hexdigest()

    def close(self) -> None:
        """Write what is left and wait until the disk has the file."""
        self._flush()
        os.ftruncate(self._file, self.num_bytes)
        os.fsync(self._file)
        self._release()

    def _append(self, values: np.ndarray) -> None:
        """At most a buffer."""
        room = _BUFFER_BYTES - self._filled
        first, rest = values[:room], values[room:]
        self._buffer[self._filled : self._filled + len(first)] = first
        self._filled += len(first)
        self.num_bytes += len(first)
        if self._filled == _BUFFER_BYTES:
            self._flush()
        if len(rest):
            self._append(rest)

    def _flush(self) -> None:
        filled = self._buffer[: self._filled]
        digest = self._digest
        hashing = self._hasher.submit(digest.update, filled) if digest is not None else None
        blocks = memoryview(self._buffer[: -(-self._filled // _BLOCK) * _BLOCK])
        while blocks:  # past the end of the values only at the file's end, which close() cuts
            blocks = blocks[os.write(self._file, blocks) :]
        self._filled = 0
        if hashing is not None:
            hashing.result()

    def _release(self) -> None:
        self._hasher.shutdown()
        os.close(self._file)
        self._file = -1

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.close()
        elif self._file >= 0:
            self._release()


def _open(path: Path, least_bytes: int) -> int:
    """A new file with room for ``least_bytes`` whose writes pass by the cache, if they can."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        if least_bytes:
            os.posix_fallocate(file, 0, least_bytes)
    except OSError:
        os.close(file)
        raise
    with contextlib.suppress(OSError, AttributeError):  # not every file system or kernel can
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
    return file

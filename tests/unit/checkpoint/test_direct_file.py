"""A file written past the page cache holds what was given, and nothing more."""

import fcntl
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vila_mc.checkpoint import direct_file
from vila_mc.checkpoint.direct_file import DirectFile


@pytest.fixture(params=["direct", "cached"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "cached":

        def refuse(*_: object) -> int:
            raise OSError(22, "no such way")

        monkeypatch.setattr(fcntl, "fcntl", refuse)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("sizes", [[], [0, 1], [4095, 1, 4096], [100_001, 3, 65_536, 7]])
@pytest.mark.parametrize("reserved", [0, 50_000])
def test_pieces_of_any_size(
    tmp_path: Path, sizes: list[int], reserved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_file, "_BUFFER_BYTES", 8192)
    pieces = [np.random.default_rng(size).bytes(size) for size in sizes]
    with DirectFile(tmp_path / "file", reserved, with_sha256=True) as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
    expected = b"".join(pieces)
    assert (tmp_path / "file").read_bytes() == expected
    assert file.num_bytes == len(expected)
    assert file.sha256() == hashlib.sha256(expected).hexdigest()


def test_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ZeroDivisionError), DirectFile(tmp_path / "one", 0):
        raise ZeroDivisionError

    def is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    with pytest.raises(OSError, match="No space"):
        DirectFile(tmp_path / "two", 1)
    assert os.listdir("/proc/self/fd") == before

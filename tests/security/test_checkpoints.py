"""The pickled index of a stranger's checkpoint: refused in one line, soon, in little memory."""

import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from vila_mc.checkpoint.places import Place
from vila_mc.checkpoint.safe_index import INDEX_NAME, read_index
from vila_mc.checkpoint.stream import _Shards
from vila_mc.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 1 << 30
"""Bytes beside the libraries."""


def index() -> Metadata:
    size = torch.Size([4, 6])
    chunk = ChunkStorageMetadata(torch.Size([0, 0]), size)
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), size, [chunk])
    return Metadata(
        {"w": tensor, "o": BytesStorageMetadata()},
        storage_data={
            MetadataIndex("w", torch.Size([0, 0]), 0): _StorageInfo("a.distcp", 0, 100),
            MetadataIndex("o"): _StorageInfo("a.distcp", 100, 10),
        },
    )


def doubled(start: bytes, pair: Callable[[int], bytes], end: bytes) -> bytes:
    """What refers twice to what refers twice ... to ``start``."""
    return b"\x80\x04" + start + b"\x94" + b"".join(map(pair, range(70))) + end


def of_twice(number: int) -> bytes:
    return b"h%ch%c\x86\x94" % (number, number)


PICKLES = {
    "a place in the memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "a key that is hashed for ever": doubled(b")", of_twice, b"}h\x46Ns."),
    "keys that are hashed for ever": doubled(b")", of_twice, b"}(h\x46Nu."),
    "a mapping by its opcode": doubled(b")", of_twice, b"(h\x46Nd."),
    "a set": doubled(b")", of_twice, b"\x8f(h\x46\x90."),
    "a frozen set": doubled(b")", of_twice, b"(h\x46\x91."),
    "a value of an enumeration": doubled(
        b")",
        of_twice,
        b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\nh\x46\x85R.",
    ),
    "a layout": doubled(b")", of_twice, b"ctorch.serialization\n_get_layout\nh\x46\x85R."),
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 36) + b".",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",
    "brackets": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a program": b"cos\nsystem\n(S'exit 3'\ntR.",
    "an attribute of a record": b"ctorch.distributed.checkpoint.metadata\nMetadata.__init__\n.",
    "nothing": b"",
}
READ = """
import resource, sys
from pathlib import Path
from vila_mc.checkpoint.safe_index import read_index
from vila_mc.errors import CheckpointError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for directory in sorted(Path(sys.argv[1]).iterdir()):
    print(directory.name, end=" ", flush=True)
    try:
        read_index(directory)
    except CheckpointError as error:
        assert "cannot be trusted" in str(error) and len(str(error)) < 500, error
        print("refused", flush=True)
"""


def test_a_pickle_ends(tmp_path: Path) -> None:
    for name, content in PICKLES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / INDEX_NAME).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(MEMORY)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    assert done.stdout.splitlines() == [f"{name} refused" for name in sorted(PICKLES)]


def test_an_index_of_ours_is_read(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_bytes(pickle.dumps(index()))
    assert read_index(tmp_path) == index()


def _tensor(**values: Any) -> Callable[[Metadata], None]:
    def change(index: Metadata) -> None:
        entry = index.state_dict_metadata["w"]
        index.state_dict_metadata["w"] = replace(entry, **values)  # type: ignore[type-var]

    return change


def _tensor_is(value: Any) -> Callable[[Metadata], None]:
    return lambda index: index.state_dict_metadata.update({"w": value})


def _chunk(offsets: list[int], sizes: list[int]) -> Callable[[Metadata], None]:
    return _tensor(chunks=[ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))])


def _place(**values: Any) -> Callable[[Metadata], None]:
    def change(index: Metadata) -> None:
        for key, place in index.storage_data.items():
            index.storage_data[key] = replace(place, **values)

    return change


CHANGES: dict[str, Callable[[Metadata], Any]] = {
    "no entries": lambda index: setattr(index, "state_dict_metadata", None),
    "no places": lambda index: setattr(index, "storage_data", [1]),
    "an entry that is none": _tensor_is(4),
    "a size of another kind": _tensor(size="x"),
    "a size that no disk holds": _tensor(size=torch.Size([2**40, 2**40])),
    "no chunks": _tensor(chunks=[]),
    "chunks that are none": _tensor(chunks=None),
    "no properties": _tensor(properties=None),
    "numbers of no format": _tensor(properties=TensorProperties(torch.quint8)),
    "a chunk before the start": _chunk([-1, 0], [4, 6]),
    "a chunk beyond the end": _chunk([1, 0], [4, 6]),
    "a chunk of other dimensions": _chunk([0], [4]),
    "a place before the start": _place(offset=-5),
    "a negative length": _place(length=-5),
    "a place beyond numbers": _place(offset=2**70),
    "a place that is a text": _place(offset="x"),
    "a file above": _place(relative_path=".."),
    "a file elsewhere": _place(relative_path="/etc/passwd"),
    "a file without a name": _place(relative_path=""),
    "a name that ends early": _place(relative_path="a\0b"),
    "a file that is none": _place(relative_path=None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_is_believed_in_nothing(name: str, tmp_path: Path) -> None:
    changed = index()
    CHANGES[name](changed)
    (tmp_path / INDEX_NAME).write_bytes(pickle.dumps(changed))
    with pytest.raises(CheckpointError, match="cannot be trusted"):
        read_index(tmp_path)


def test_what_no_chunk_holds_is_not_read_from_memory(tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save(torch.ones(4, 3), stored)
    (tmp_path / "a.distcp").write_bytes(stored.getvalue())
    half = index()
    _chunk([0, 0], [4, 3])(half)
    _place(length=len(stored.getvalue()))(half)
    with pytest.raises(CheckpointError, match="holds but parts of w"):
        _Shards(tmp_path, half).read([Place("w", (0, 0), (4, 6))], (4, 6))


def _read(directory: Path) -> None:
    _Shards(directory, read_index(directory)).read([Place("w", (0, 0), (4, 6))], (4, 6))


@pytest.mark.parametrize("name", [INDEX_NAME, "a.distcp"])
def test_a_pipe_keeps_nobody_waiting(name: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_bytes(pickle.dumps(index()))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="pipe or device"):
        _read(tmp_path)

"""Read what torch pickles in a checkpoint without running what a stranger may have put there.

A pickle can call any function while it is read. torch.distributed.checkpoint keeps its index
(``.metadata``) as one and reads objects with ``torch.load(weights_only=False)``. Here the index is
read by an unpickler that knows only the record classes an index is made of, and ``torch.load``
refuses everything but tensors and plain values.
"""

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata

from vila_mc.errors import CheckpointError

INDEX_NAME = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
}
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index needs")


def read_index(directory: Path) -> Metadata:
    """The names, shapes and places of everything in a checkpoint. Raises CheckpointError."""
    path = directory / INDEX_NAME
    try:
        with open(path, "rb") as file:
            return _load_index(file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} has no {INDEX_NAME}: it is incomplete. Use an older step-* directory."
        ) from None


@contextlib.contextmanager
def nothing_foreign_unpickled() -> Iterator[None]:
    """While active, torch.distributed.checkpoint reads indexes and objects as this module does."""
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    reader: Any = filesystem
    pickle_of_torch = reader.pickle
    reader.pickle = SimpleNamespace(load=_load_index)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            yield
    finally:
        reader.pickle = pickle_of_torch
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def _load_index(file: BinaryIO) -> Metadata:
    # Anything may come out of damaged bytes.
    try:
        index = _IndexUnpickler(file).load()
    except Exception as error:
        raise CheckpointError(f"{_name(file)} cannot be trusted or is damaged: {error}.") from None
    if not isinstance(index, Metadata):
        raise CheckpointError(f"{_name(file)} is not the index of a checkpoint.")
    return index


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", INDEX_NAME))

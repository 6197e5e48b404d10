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
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from vila_mc.errors import CheckpointError
from vila_mc.parallel.megatron_patches import SAFE_INDEX

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
    "torch": {"Size"},
}
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda layout: torch.serialization._get_layout(layout)  # type: ignore[no-untyped-call]
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
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with (
            SAFE_INDEX.applied(SimpleNamespace(load=_load_index)),
            torch.serialization.safe_globals([io.BytesIO]),
        ):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def _load_index(file: BinaryIO) -> Metadata:
    # Anything may come out of damaged bytes.
    try:
        with _records_as_they_are():
            index = _IndexUnpickler(file).load()
    except Exception as error:
        raise CheckpointError(f"{_name(file)} cannot be trusted or is damaged: {error}.") from None
    if not isinstance(index, Metadata):
        raise CheckpointError(f"{_name(file)} is not the index of a checkpoint.")
    return index


@contextlib.contextmanager
def _records_as_they_are() -> Iterator[None]:
    """Undo and refuse what a pickle sets on a record class itself instead of on a record.

    Raises:
        UnpicklingError: it has set something.
    """
    names = ((import_module(module), names) for module, names in _RECORDS.items())
    classes = [getattr(module, name) for module, names in names for name in names]
    before = [dict(vars(record)) for record in classes]
    try:
        yield
    finally:
        changed = [
            (record, attributes)
            for record, attributes in zip(classes, before, strict=True)
            if dict(vars(record)) != attributes
        ]
        for record, attributes in changed:
            for name in vars(record).keys() - attributes.keys():
                delattr(record, name)
            for name, value in attributes.items():
                if vars(record)[name] is not value:
                    setattr(record, name, value)
    if changed:
        raise pickle.UnpicklingError(f"it changes the class {changed[0][0].__name__}")


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", INDEX_NAME))

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
from typing import Any, BinaryIO, ClassVar, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata

from vila_mc.checkpoint.index_types import fault_of_index, is_key
from vila_mc.errors import CheckpointError
from vila_mc.foreign_files import ForeignFileError, open_foreign
from vila_mc.parallel.megatron_patches import SAFE_INDEX

INDEX_NAME = ".metadata"
_LARGEST_BYTES = 1 << 26
"""Of an index; one of half a million pieces has about as many."""
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


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _IndexUnpickler(_Unpickler):  # type: ignore[misc]
    """Knows the classes of an index, and no other.

    In Python: the one in C takes as much memory as one number in the file says. What is hashed is
    looked at before, because the hash of tuples within tuples can take for ever.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in _Unpickler.dispatch.items()
        if code not in (pickle.FROZENSET[0], pickle.ADDITEMS[0], pickle.DICT[0])
    }

    def load_setitem(self) -> None:
        _require(is_key(self.stack[-2]))
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _require(all(map(is_key, self.stack[::2])))  # since the mark
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_reduce(self) -> None:
        _require(all(map(_is_plain, self.stack[-1])))
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

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
        with open_foreign(path) as file:
            return _load_index(file)
    except ForeignFileError as error:
        raise CheckpointError(f"{path} {error}. Use an older step-* directory.") from None
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
    content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise CheckpointError(f"{_name(file)} is larger than {_LARGEST_BYTES >> 20} MiB.")
    # Anything may come out of damaged bytes.
    try:
        with _records_as_they_are():
            index = _IndexUnpickler(io.BytesIO(content)).load()
        fault = fault_of_index(index)
    except Exception as error:
        raise CheckpointError(
            f"{_name(file)} cannot be trusted or is damaged: {str(error)[:200]}."
        ) from None
    if fault is not None:
        raise CheckpointError(f"{_name(file)} cannot be trusted or is damaged: {fault}.")
    return cast(Metadata, index)


def _require(is_fine: bool) -> None:
    if not is_fine:
        raise pickle.UnpicklingError("it holds what no index needs")


def _is_plain(value: object) -> bool:
    """What the records of an index are made of: names, numbers, and the sizes of tensors."""
    is_numbers = type(value) is tuple and all(type(number) is int for number in value)
    return is_numbers or type(value) in (str, int)


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

"""Weights of a training checkpoint of any layout, read one at a time.

A checkpoint is read without building its model in memory and without unpickling tensors: torch
stores each tensor in an uncompressed archive, whose bytes are read. Nothing here needs a GPU or
more than one process.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.places import Place, model_places
from vila_mc.checkpoint.safe_index import read_index
from vila_mc.config.lora import LoraConfig
from vila_mc.config.model import ModelConfig
from vila_mc.errors import CheckpointError
from vila_mc.foreign_files import ForeignFileError, open_foreign
from vila_mc.topology.shapes import NO_ADAPTERS, Shape

_LOCAL_HEADER = struct.Struct("<26xHH")
"""What is read of the header of a zip archive's entry: the lengths of its name and extra field."""
_READ_AT_ONCE = 2**21
"""Few enough bytes that their checksum finds them in the processor's cache."""


def open_checkpoint(
    directory: Path,
    model: ModelConfig,
    lora: LoraConfig = NO_ADAPTERS,
    base: Path | None = None,
) -> dict[str, LazyTensor]:
    """Every parameter of a whole model, to be read from a checkpoint of any layout.

    Args:
        directory: a whole checkpoint (step-*).
        model: as the checkpoint's own manifest has it.
        lora: likewise.
        base: the checkpoint that holds the weights that are not in ``directory``, if any are not.

    Raises:
        CheckpointError: a parameter is missing or has another shape; when it is read, its bytes
            are not those that were written.
    """
    own = _Shards(directory, read_index(directory))
    others = own if base is None else _Shards(base, read_index(base))
    tensors: dict[str, LazyTensor] = {}
    for name, (shape, places) in model_places(model, lora).items():
        shards = own if own.has(places[0].key) else others
        entries = [shards.index.state_dict_metadata.get(place.key) for place in places]
        fits = all(_holds(entry, place) for entry, place in zip(entries, places, strict=True))
        first = entries[0]
        if not fits or not isinstance(first, TensorStorageMetadata):
            raise CheckpointError(
                f"{shards.directory} does not hold {name} of its own model. It is damaged; use an "
                "older step-* directory."
            )
        tensors[name] = LazyTensor(
            shape,
            first.properties.dtype,
            lambda shards=shards, places=places, shape=shape: shards.read(places, shape),  # type: ignore[misc]
        )
    return tensors


def _holds(entry: Any, place: Place) -> bool:
    """Whether a global tensor of an index reaches as far as ``place``."""
    return (
        isinstance(entry, TensorStorageMetadata)
        and len(entry.size) == len(place.size)
        and all(
            start + size <= reach
            for start, size, reach in zip(place.start, place.size, entry.size, strict=True)
        )
    )


class _Shards:
    """The shard files of one checkpoint."""

    def __init__(self, directory: Path, index: Metadata) -> None:
        self.directory = directory
        self.index = index
        self._open = cache(self._opened)

    def has(self, key: str) -> bool:
        """Whether there is anything of that key."""
        return key in self.index.state_dict_metadata

    def read(self, places: list[Place], shape: Shape) -> Tensor:
        """The pieces of a parameter, put together."""
        pieces = [self._region(place) for place in places]
        return (pieces[0] if len(pieces) == 1 else self._joined(pieces)).reshape(shape)

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        # Pieces stand one below the other, behind the axis of layers if there is one.
        layers = pieces[0].dim() - 2
        return torch.cat(pieces, dim=layers)

    def _region(self, place: Place) -> Tensor:
        """A box of a global tensor: one chunk as it is, or copied from those that overlap it."""
        entry = self.index.state_dict_metadata[place.key]
        assert isinstance(entry, TensorStorageMetadata)
        whole = torch.zeros(0)
        numbers = 0
        for chunk in entry.chunks:
            if tuple(chunk.offsets) == place.start and tuple(chunk.sizes) == place.size:
                return self._chunk(place.key, chunk, entry.properties.dtype)
            cut = _overlap(place, chunk)
            if cut is None:
                continue
            if not numbers:
                whole = torch.zeros(place.size, dtype=entry.properties.dtype)
            target, source = cut
            whole[target] = self._chunk(place.key, chunk, entry.properties.dtype)[source]
            numbers += whole[target].numel()
        if numbers != math.prod(place.size):
            raise CheckpointError(
                f"{self.directory} holds but parts of {place.key}. Use an older step-* directory."
            )
        return whole

    def _chunk(self, key: str, chunk: ChunkStorageMetadata, dtype: torch.dtype) -> Tensor:
        info = self._find(key, chunk)
        archive = _Window(self._open(info.relative_path), info.offset, info.length)
        size = torch.Size(chunk.sizes).numel() * dtype.itemsize
        try:
            values = _stored_values(archive, size)
        except (zipfile.BadZipFile, struct.error, StopIteration, EOFError):
            raise CheckpointError(
                f"{self.directory / info.relative_path} is damaged: {key} is not the tensor that "
                "was written. Use an older step-* directory."
            ) from None
        return torch.from_numpy(values).view(dtype).reshape(tuple(chunk.sizes))

    def _find(self, key: str, chunk: ChunkStorageMetadata) -> Any:
        # The number of a chunk does not take part in comparisons.
        found = self.index.storage_data.get(MetadataIndex(key, chunk.offsets))
        if found is None:
            raise CheckpointError(f"{self.directory}: the index is damaged at {key}.")
        return found

    def _opened(self, name: str) -> BinaryIO:
        path = self.directory / name
        try:
            return open_foreign(path)
        except (OSError, ForeignFileError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. It is incomplete.") from None


def _overlap(
    place: Place, chunk: ChunkStorageMetadata
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """The common box, as slices of ``place`` and of ``chunk``; None if there is none."""
    target, source = [], []
    for start, size, offset, length in zip(
        place.start, place.size, chunk.offsets, chunk.sizes, strict=True
    ):
        low, high = max(start, offset), min(start + size, offset + length)
        if low >= high:
            return None
        target.append(slice(low - start, high - start))
        source.append(slice(low - offset, high - offset))
    return tuple(target), tuple(source)


def _stored_values(archive: "_Window", size: int) -> np.ndarray:
    """[size] uint8: the values in what torch.save made of one tensor.

    They are read, not mapped: page faults would take longer than the copy.

    Raises:
        BadZipFile: the archive is damaged, or holds other values than were written.
        EOFError: the file ends too early.
    """
    with zipfile.ZipFile(archive) as entries:
        entry = next(info for info in entries.infolist() if info.filename.endswith("/data/0"))
    is_there = entry.file_size == size <= archive.length
    if entry.compress_type != zipfile.ZIP_STORED or not is_there:
        raise zipfile.BadZipFile
    header = bytearray(_LOCAL_HEADER.size)
    archive.read_into(entry.header_offset, header)
    start = entry.header_offset + len(header) + sum(_LOCAL_HEADER.unpack(header))
    values = np.empty(size, np.uint8)
    checksum = 0
    for begin in range(0, size, _READ_AT_ONCE):
        part = values[begin : begin + _READ_AT_ONCE].data
        archive.read_into(start + begin, part)
        checksum = zlib.crc32(part, checksum)
    if checksum != entry.CRC:
        raise zipfile.BadZipFile
    return values


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own, which several threads may have open."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self.length = file, start, length
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(self.length - self._at, 0))
        count = os.preadv(
            self._file.fileno(), [memoryview(buffer)[:wanted]], self._start + self._at
        )
        self._at += count
        return count

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises EOFError where that is outside."""
        if offset < 0:
            raise EOFError
        self.seek(offset)
        view = memoryview(buffer)
        while view:
            count = self.readinto(view)
            if count == 0:
                raise EOFError
            view = view[count:]

"""Whether what came out of a pickled index is one, so that its numbers can be relied on."""

from typing import Any

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

_LARGEST = 2**62
"""Bytes, and numbers of a tensor."""
_NUMBERS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def fault_of_index(index: object) -> str | None:
    """What is wrong with an index; None if nothing."""
    if type(index) is not Metadata:
        return "it is not the index of a checkpoint"
    entries, places = index.state_dict_metadata, index.storage_data
    if type(entries) is not dict or type(places) is not dict:
        return "it has no entries or no places"
    for name, entry in entries.items():
        is_known = type(entry) is BytesStorageMetadata or _is_tensor(entry)
        if type(name) is not str or not is_known:
            return f"its entry {name!a:.80} describes neither tensor nor object"
    for key, place in places.items():
        if not is_key(key) or type(key) is str or not _is_place(place):
            return "it names a place outside its files"
    return None


def is_key(key: object) -> bool:
    """Whether an index can have it as a key: a name, or a name and where a chunk starts."""
    if type(key) is not MetadataIndex:
        return type(key) is str
    is_chunk = key.offset is None or type(key.offset) is torch.Size
    return type(key.fqn) is str and is_chunk and type(key.index) in (int, type(None))


def _is_tensor(entry: Any) -> bool:
    return (
        type(entry) is TensorStorageMetadata
        and type(entry.properties) is TensorProperties
        and entry.properties.dtype in _NUMBERS
        and _is_size(entry.size)
        and type(entry.chunks) is list
        and len(entry.chunks) > 0
        and all(_is_chunk(chunk, entry.size) for chunk in entry.chunks)
    )


def _is_chunk(chunk: Any, whole: torch.Size) -> bool:
    return (
        type(chunk) is ChunkStorageMetadata
        and _is_size(chunk.offsets)
        and _is_size(chunk.sizes)
        and len(chunk.offsets) == len(chunk.sizes) == len(whole)
        and all(
            start + size <= reach
            for start, size, reach in zip(chunk.offsets, chunk.sizes, whole, strict=True)
        )
    )


def _is_size(size: Any) -> bool:
    if type(size) is not torch.Size or any(number < 0 for number in size):
        return False
    numbers = 1
    for number in size:
        numbers *= number
    return numbers <= _LARGEST


def _is_place(place: Any) -> bool:
    return (
        type(place) is _StorageInfo
        and type(place.relative_path) is str
        and place.relative_path not in ("", ".", "..")
        and not any(character in place.relative_path for character in "/\0")
        and all(
            type(number) is int and 0 <= number <= _LARGEST
            for number in (place.offset, place.length)
        )
    )

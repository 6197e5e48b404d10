"""A training checkpoint of weights alone, written one tensor at a time by one process.

It is what ``load_weights`` reads at every layout: the shards of a single rank, torch's index of
them, and the manifest. It has no optimizer state; a run starts from it with ``train.load``.
"""

import math
import pickle
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from vila_mc.checkpoint.direct_file import DirectFile
from vila_mc.checkpoint.directories import checkpoint_name, newest_checkpoint
from vila_mc.checkpoint.lazy import LazyTensors, Reading, ahead
from vila_mc.checkpoint.manifest import BaseRecord, FileRecord, Manifest, TemplateRecord, versions
from vila_mc.checkpoint.places import Place, empty_objects, model_places
from vila_mc.checkpoint.safe_index import INDEX_NAME
from vila_mc.checkpoint.state import content_metadata
from vila_mc.config.run import RunConfig
from vila_mc.errors import CheckpointError
from vila_mc.files import whole_directory
from vila_mc.model.megatron_config import DTYPES

_SHARD_NAME = "__0_0.distcp"
_COMMON = "common_state/shard_0_1"
"""Where Megatron-Core looks for what is neither a tensor nor of one rank."""
_STEP = 0


def write_weights_checkpoint(
    config: RunConfig,
    tensors: LazyTensors,
    origin: str,
    *,
    template: TemplateRecord | None = None,
    base: BaseRecord | None = None,
) -> Path:
    """Write a checkpoint that any run of the same model can start from, at any layout.

    Args:
        config: what the manifest says; its ``train.output`` is where the checkpoint goes and its
            ``train.precision`` the number format of the weights.
        tensors: every parameter of a whole model, or those that ``base`` has not.
        origin: where they come from, for messages.
        template: the chat template that they were trained with, where it is known.
        base: the checkpoint that has the others.

    Returns:
        The directory of the checkpoint, of step 0.

    Raises:
        CheckpointError: there is a checkpoint already, of whatever step; or a weight is no number.
    """
    if (found := newest_checkpoint(config.train.output)) is not None:
        raise CheckpointError(
            f"{found} exists, and of several checkpoints in a directory the newest is read. Choose "
            "another output."
        )
    final = config.train.output / checkpoint_name(_STEP)
    with whole_directory(final) as partial:
        state, dtype = Reading(tensors, origin), DTYPES[config.train.precision]
        places = {
            name: place
            for name, place in model_places(config.model, config.lora).items()
            if base is None or name in tensors
        }
        arriving = ahead((where, state[name].to(dtype)) for name, (_, where) in places.items())
        numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
        with _Shard(partial / _SHARD_NAME, numbers * dtype.itemsize) as shard:
            for where, tensor in arriving:
                shard.write_parameter(where, tensor)
            for key in empty_objects(config.model):
                shard.write_object(key, None)
            shard.write_object(_COMMON, {"content_metadata": content_metadata()})
        with open(partial / INDEX_NAME, "wb") as file:
            pickle.dump(shard.index(), file)
        save_config(CheckpointingConfig("torch_dist", 1), str(partial))
        files = {_SHARD_NAME: shard.record()}
        files |= {
            path.name: FileRecord.of(path) for path in partial.iterdir() if path.name not in files
        }
        Manifest(
            step=_STEP,
            samples_seen=0,
            config=config,
            layout=None,
            versions=versions(),
            template=template,
            base=base,
            files=files,
        ).write(partial)
    return final


class _Shard(AbstractContextManager["_Shard"]):
    """The one shard file; remembers where everything stands in it, and its checksum."""

    def __init__(self, path: Path, least_bytes: int) -> None:
        self._name = path.name
        self._file = DirectFile(path, least_bytes, with_sha256=True)
        self._stored: dict[MetadataIndex, _StorageInfo] = {}
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._objects: dict[str, BytesStorageMetadata] = {}

    def write(self, data: Any) -> int:
        """For torch.save."""
        return self._file.write(data)

    def flush(self) -> None:
        """For torch.save."""

    def write_parameter(self, places: list[Place], tensor: Tensor) -> None:
        """Write a whole parameter, in the pieces that a checkpoint keeps."""
        rows = [place.size[-tensor.dim()] for place in places]
        for place, piece in zip(places, tensor.split(rows), strict=True):  # type: ignore[no-untyped-call]
            chunk = ChunkStorageMetadata(torch.Size(place.start), torch.Size(place.size))
            entry = self._tensors.setdefault(
                place.key,
                TensorStorageMetadata(
                    TensorProperties(dtype=tensor.dtype), torch.Size(place.start), []
                ),
            )
            entry.chunks.append(chunk)
            reached = (start + size for start, size in zip(place.start, place.size, strict=True))
            entry.size = torch.Size(map(max, entry.size, reached))
            values = _alone(piece.reshape(place.size))
            self._store(MetadataIndex(place.key, chunk.offsets), values)

    def write_object(self, key: str, value: Any) -> None:
        """Write something that is not a tensor, as Megatron-Core does: in a list."""
        self._objects[key] = BytesStorageMetadata()
        self._store(MetadataIndex(key), [value])

    def _store(self, index: MetadataIndex, value: Any) -> None:
        start = self._file.num_bytes
        torch.save(value, self)  # type: ignore[arg-type]
        self._stored[index] = _StorageInfo(self._name, start, self._file.num_bytes - start)

    def index(self) -> Metadata:
        """torch's index of the file."""
        return Metadata({**self._tensors, **self._objects}, storage_data=self._stored)

    def record(self) -> FileRecord:
        """For the manifest, once the file is closed."""
        return FileRecord(self._file.num_bytes, self._file.sha256())

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)


def _alone(tensor: Tensor) -> Tensor:
    """The same values in memory of their own extent: a view is saved with all it is a view of."""
    flat = tensor.contiguous().reshape(-1)
    own = memoryview(flat.view(torch.uint8).numpy())
    return torch.frombuffer(own, dtype=tensor.dtype).reshape(tensor.shape)

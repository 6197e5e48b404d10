"""Is a checkpoint what was written, and does it hold what a run asks for?"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from vila_mc.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest
from vila_mc.checkpoint.safe_index import read_index
from vila_mc.errors import CheckpointError

_Shape = tuple[int, ...] | None
"""Global shape of a tensor; None for an object."""
_MOST_NAMES = 8


def require_intact(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its checksum, each rank its share; every rank must call this.

    Raises:
        CheckpointError: files are missing, surplus or changed; it names them.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = sorted(manifest.files)[rank::world_size]
    complaints = [text for name in mine if (text := _complaint(directory, name, manifest))]
    if rank == 0:
        found = {path.name for path in directory.iterdir()} - {MANIFEST_NAME}
        complaints += [f"{name} does not belong to it" for name in found - manifest.files.keys()]
    gathered: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(gathered, complaints)
    everything = sorted(text for theirs in gathered for text in theirs)
    if everything:
        raise CheckpointError(
            f"{directory} is damaged: {_few(everything)}. Use an older step-* directory: to resume "
            "from it, move this one away."
        )


def require_same_names(
    directory: Path, state: Mapping[str, Any], ignored: Iterable[str] = ()
) -> None:
    """Compare names and shapes with those that all ranks ask for; every rank must call this.

    Args:
        directory: the checkpoint.
        state: what this rank asks for.
        ignored: beginnings of names in the checkpoint that need not be asked for.

    Raises:
        CheckpointError: it lists what is missing, surplus and of another shape.
    """
    stored = stored_shapes(directory)
    wanted: dict[str, _Shape] = {}
    by_rank: list[dict[str, _Shape]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, _names_and_shapes(state))
    for theirs in by_rank:
        wanted |= theirs
    missing = sorted(wanted.keys() - stored.keys())
    prefixes = tuple(ignored)
    surplus = sorted(
        name for name in stored.keys() - wanted.keys() if not name.startswith(prefixes)
    )
    other_shape = [
        f"{name} (checkpoint {_shape(stored[name])}, run {_shape(wanted[name])})"
        for name in sorted(wanted.keys() & stored.keys())
        if wanted[name] != stored[name]
    ]
    lists = (("missing", missing), ("surplus", surplus), ("of another shape", other_shape))
    complaints = [f"{what}: {_few(names)}" for what, names in lists if names]
    if complaints:
        raise CheckpointError(
            f"{directory} does not hold the weights of this run; {'; '.join(complaints)}. Use the "
            "model section and train.trainable it was trained with, or another checkpoint."
        )


def stored_shapes(directory: Path) -> dict[str, _Shape]:
    """Shapes of everything in a checkpoint by its key; None for objects. Raises CheckpointError."""
    return {
        name: tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else None
        for name, entry in read_index(directory).state_dict_metadata.items()
    }


def _names_and_shapes(state: Mapping[str, Any]) -> dict[str, _Shape]:
    names: dict[str, _Shape] = {}
    for part in nested_values(state):
        if isinstance(part, ShardedTensorFactory):
            names |= _names_and_shapes(part.build())
        elif isinstance(part, ShardedTensor):
            names[part.key] = tuple(part.global_shape)
        elif isinstance(part, ShardedObject):
            names[part.unique_key] = None
    return names


def _complaint(directory: Path, name: str, manifest: Manifest) -> str | None:
    path = directory / name
    try:
        if not path.is_file() and path.exists():
            return f"{name} is no file"
        if path.stat().st_size != manifest.files[name].num_bytes:
            return f"{name} has another length than when it was written"
        if FileRecord.of(path) != manifest.files[name]:
            return f"{name} has other bytes than when it was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _shape(shape: _Shape) -> str:
    return "an object" if shape is None else " x ".join(map(str, shape))


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    left = len(names) - _MOST_NAMES
    return f"{shown} and {left} more" if left > 0 else shown

"""What a run with adapters leaves alone is not kept again: its checkpoints name where it is.

A checkpoint of such a run holds its adapters, what else learned, and what did not come whole from
``train.load``. The other weights are those of one earlier checkpoint, its *base*, which it names by
path and by a fingerprint of all bytes: another one in its place is refused.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.manifest import MANIFEST_NAME, BaseRecord, Manifest
from vila_mc.checkpoint.positions import POSITIONS, positions_stretch
from vila_mc.checkpoint.require_intact import stored_shapes
from vila_mc.checkpoint.state import named, weights_state
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.checkpoint.vocabulary import TABLES, vocabulary_grows
from vila_mc.config.lora import is_adapter
from vila_mc.errors import CheckpointError
from vila_mc.model.vila_model import VilaModel


@dataclass(frozen=True, slots=True)
class Base:
    """The checkpoint that a run leaves weights in, and which."""

    record: BaseRecord
    keys: frozenset[str]
    """Keys of global tensors, which are those of every layout."""

    def without(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What of the described ``weights`` of a stage a checkpoint must hold itself."""
        return {name: entry for name, entry in weights.items() if entry.key not in self.keys}


def base_of_run(
    directory: Path, manifest: Manifest, stages: Sequence[VilaModel], output: Path
) -> Base | None:
    """What the checkpoints of a run with adapters need not hold; every rank must call this.

    Args:
        directory: the checkpoint that the run has started from or goes on from.
        manifest: its manifest.
        stages: this rank's stages, as loaded and frozen.
        output: where the run's checkpoints go.

    Returns:
        None if the run has no adapters, or nothing is as it was.
    """
    run = stages[0].run_config
    if not run.lora.parts():
        return None
    stored = stored_shapes(directory)
    parts = run.train.load_parts
    changed = [*TABLES] if vocabulary_grows(manifest, run, parts) else []
    changed += [POSITIONS] if positions_stretch(manifest, run, parts) else []
    present, learning = _keys(stages)
    if manifest.base is None:
        record = record_of(directory, manifest, output)
        unchanged = {
            key
            for key in present & stored.keys()
            if key.startswith(tuple(f"{part}." for part in parts))
        }
    else:
        record = _seen_from(manifest.base, output)
        unchanged = present - stored.keys()
    kept = {key for key in unchanged - learning if not is_adapter(key)}
    keys = frozenset(kept.difference(changed))
    return Base(record, keys) if keys else None


def record_of(directory: Path, manifest: Manifest, output: Path) -> BaseRecord:
    """What checkpoints in ``output`` say of the base ``directory``."""
    path = str(directory.absolute())
    return BaseRecord(
        path=path, relative=_relative(path, output), fingerprint=manifest.fingerprint()
    )


def base_directory(directory: Path, manifest: Manifest) -> Path | None:
    """Where the weights are that a checkpoint does not hold; None if it holds all.

    Raises:
        CheckpointError: they are no longer there, or others are.
    """
    record = manifest.base
    if record is None:
        return None
    places = [Path(record.path), (directory / record.relative).resolve()]
    found = next((place for place in places if (place / MANIFEST_NAME).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{directory} holds adapters and what else learned; the other weights are those of "
            f"{record.path}, which is not there any more. Put it back, or at "
            f"{os.path.normpath(directory / record.relative)}."
        )
    fingerprint = Manifest.read(found).fingerprint()
    if fingerprint != record.fingerprint:
        raise CheckpointError(
            f"the adapters of {directory} were trained beside other weights than those that are in "
            f"{found} now (fingerprint {record.fingerprint[:12]}, now {fingerprint[:12]}). Put the "
            "checkpoint back that they were trained beside."
        )
    return found


def open_whole(directory: Path, manifest: Manifest) -> dict[str, LazyTensor]:
    """Every parameter of a checkpoint's whole model, adapters too, wherever they lie.

    Raises:
        CheckpointError: as ``open_checkpoint`` and ``base_directory``.
    """
    config = manifest.config
    base = base_directory(directory, manifest)
    return open_checkpoint(directory, config.model, config.lora, base)


def _keys(stages: Sequence[VilaModel]) -> tuple[set[str], set[str]]:
    """Keys of all weights and of those that learn, over all ranks."""
    present, learning = set(), set()
    described = weights_state(stages)
    for name, stage in named(stages):
        for parameter, weight in stage.named_parameters():
            key = described[name][parameter].key
            present.add(key)
            if weight.requires_grad:
                learning.add(key)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (present, learning))
    here, learns = zip(*everywhere, strict=True)
    return set().union(*here), set().union(*learns)


def _seen_from(record: BaseRecord, output: Path) -> BaseRecord:
    return BaseRecord(
        path=record.path,
        relative=_relative(record.path, output),
        fingerprint=record.fingerprint,
    )


def _relative(path: str, output: Path) -> str:
    return os.path.relpath(path, output.absolute() / "step")

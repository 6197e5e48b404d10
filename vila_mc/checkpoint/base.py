"""What a run with adapters leaves alone is not kept again: its checkpoints name where it is.

A checkpoint of such a run holds its adapters, what else learned, and what did not come whole from
``train.load``. The other weights are those of one earlier checkpoint, its *base*, which it names by
path and by a fingerprint of all bytes: another one in its place is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vila_mc.checkpoint.base_place import base_directory, record_of
from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.manifest import BaseRecord, Manifest
from vila_mc.checkpoint.needed import mark_needed
from vila_mc.checkpoint.positions import POSITIONS, positions_stretch
from vila_mc.checkpoint.require_intact import stored_shapes
from vila_mc.checkpoint.state import named, weights_state
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.checkpoint.vocabulary import TABLES, vocabulary_grows
from vila_mc.config.lora import is_adapter
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
        None if the run has no adapters, or nothing is as it was. The base is marked as needed.
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
        place = base_directory(directory, manifest)
        assert place is not None
        record = record_of(place, Manifest.read(place), output)
        unchanged = present - stored.keys()
    kept = {key for key in unchanged - learning if not is_adapter(key)}
    keys = frozenset(kept.difference(changed))
    if not keys:
        return None
    if dist.get_rank() == 0:
        mark_needed(Path(record.path), output)
    return Base(record, keys)


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

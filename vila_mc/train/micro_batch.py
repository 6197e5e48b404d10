"""The micro-batch of a run: as given, as it was before, or chosen."""

import dataclasses

from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.run import RunConfig
from vila_mc.topology.layout import Layout
from vila_mc.topology.micro_batch import choose_micro_batch


def with_micro_batch(config: RunConfig, layout: Layout) -> tuple[RunConfig, str]:
    """The same run with a ``train.micro_batch``, and one line about it where it was not given.

    A run that goes on as it was keeps its micro-batch, so that it goes on bit for bit.

    Raises:
        CheckpointError: the checkpoint to go on from is damaged.
    """
    if config.train.micro_batch is not None:
        return config, ""
    before = _as_before(config, layout)
    rows, why = (before, "as before") if before else choose_micro_batch(config, layout)
    train = dataclasses.replace(config.train, micro_batch=rows)
    line = f"train.micro_batch {rows}, which was not given: {why}"
    return dataclasses.replace(config, train=train), line


def _as_before(config: RunConfig, layout: Layout) -> int | None:
    """That of the checkpoint to go on from, if nothing has changed that it depends on."""
    earlier = newest_checkpoint(config.train.output)
    if earlier is None:
        return None
    manifest = Manifest.read(earlier)
    same = manifest.layout == layout and _rows(manifest.config) == _rows(config)
    return manifest.config.train.micro_batch if same else None


def _rows(config: RunConfig) -> tuple[int, int]:
    return config.train.global_batch, config.data.sequence_length

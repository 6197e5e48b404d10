"""Which checkpoint of a run has the lowest validation loss."""

import contextlib
from pathlib import Path

from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.errors import CheckpointError


def best_checkpoint(directory: Path) -> Path | None:
    """The one in ``directory``, of equal ones the oldest.

    None where no checkpoint has a validation behind it. A damaged one is passed over: who reads it
    will be told.
    """
    losses: dict[Path, float] = {}
    for path in whole_checkpoints(directory):
        with contextlib.suppress(CheckpointError):
            if (loss := Manifest.read(path).validation_loss) is not None:
                losses[path] = loss
    return min(losses, key=losses.__getitem__, default=None)

"""What a recipe does not say of a run: what its rows hold, and what stands around the GPUs."""

from dataclasses import dataclass

from vila_mc.planner.replay import Dealt, Replay

DECODED = 174.0
"""Images that one worker process decodes, resizes to 336 x 336 and lays out in a second, where each
is a JPEG of 640 x 480: the slower of two days on one core of an AMD EPYC (Zen 4),
`benchmarks/loader.py`."""
WRITTEN = 0.47e9
"""Bytes that storage takes in a second: one local disk, all of a save but its copy into the host's
memory (docs/gpu_results.md, `benchmarks/gpu_saves.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known, or assumed."""

    images: float | None = None
    """Squares of a row on average, each an image or a tile of one, where there is no ``replay``; if
    none, as many as a row has room for, which is the worst."""
    replay: Replay | None = None
    """Steps of the run's own datasets."""
    decoded: float = DECODED
    """Images that a worker makes ready in a second."""
    disk: float = WRITTEN
    """Bytes a second that storage takes from all machines together."""
    steps_from: str = "train.steps"
    """What says how many steps the run has."""
    are_steps_known: bool = True

    def dealt(self, ranks: int, micro_batch: int) -> Dealt | None:
        """What passes of data-parallel ranks hold, where that is known."""
        return None if self.replay is None else self.replay.dealt(ranks, micro_batch)


NOTHING = Known()
"""Rows are full of images."""

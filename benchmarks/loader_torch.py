"""The loader against torch's own ``DataLoader``, which does the same work in as many processes.

Both make the same microbatches of the same set with the same code: torch's takes the rows of each
for a sampler and makes them in its workers. It pins nothing and has the better of two prefetch
factors. CPU time of all processes decides how fast either reads on a machine that is busy; that of
the training process alone, which copies the pixels out of each microbatch as a transfer to a device
does, is what the step waits for even if everything is ready.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from claims import Claim, median_ratio, parser, report
from loader import (
    BATCH,
    NUM_IMAGES,
    ROUNDS,
    SIZE,
    cpu_seconds_of,
    training_data,
    wait_until_idle,
    write_set,
)
from mixes import jpeg
from torch.utils.data import DataLoader, Dataset

from vila_mc.config.data import DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.loader import Rows, TrainingData
from vila_mc.flow import Microbatch

PREFETCH = (2, 4)


def main() -> int:
    """Measure and print the table."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data, model = write_set(Path(name), [jpeg(seed) for seed in range(NUM_IMAGES)])
        claims = [claim for images in (True, False) for claim in _measure(data, model, images)]
        return report(claims, arguments)


class _Loads(Dataset[Microbatch]):
    """Microbatches by the rows that make them, for torch's loader."""

    def __init__(self, ours: TrainingData) -> None:
        self._ours = ours

    def __getitem__(self, rows: Rows) -> Microbatch:
        return self._ours._load(rows)


class _RowsAhead:
    """What torch's loader takes for a sampler."""

    def __init__(self, ours: TrainingData) -> None:
        self._ours = ours

    def __iter__(self) -> Iterator[Rows]:
        return (rows for rows, _ in self._ours._rows_ahead(0))


def _measure(data: DataConfig, model: ModelConfig, needs_images: bool) -> list[Claim]:
    """Two worker processes each; CPU time until all of them wait again."""
    count = 64 if needs_images else 1024
    idle = training_data(data, model, 0, needs_images)
    with training_data(data, model, 2, needs_images) as ours:
        readers = {"ours": ((step.microbatches[0] for step in ours.iterate(0)), ours.worker_pids())}
        for prefetch in PREFETCH:
            loader: Any = DataLoader(
                _Loads(idle),
                sampler=_RowsAhead(idle),
                batch_size=None,
                collate_fn=lambda batch: batch,
                num_workers=2,
                prefetch_factor=prefetch,
                multiprocessing_context="fork",
            )
            batches = iter(loader)
            readers[f"torch {prefetch}"] = batches, [each.pid for each in batches._workers]
        everywhere, here = _cpu_seconds_here_and_there(readers, count)
    del readers, batches, loader
    best = min(
        (f"torch {each}" for each in PREFETCH), key=lambda n: statistics.median(everywhere[n])
    )
    what = f"{BATCH} images" if needs_images else "text alone"
    how = f"CPU time, median of {ROUNDS} rounds in turn, 2 workers; {best}"
    claims = [
        Claim(
            f"ours against torch's, microbatches of {what}",
            median_ratio(everywhere[best], everywhere["ours"]),
            "x",
            how=f"all processes, {how}",
        )
    ]
    for name, its in (("ours", "ours"), (best, "torch's")):
        each = 1000 * statistics.median(here[name]) / count
        claims.append(Claim(f"  training process, {its}, per microbatch", each, "ms", how=how))
    return claims


def _cpu_seconds_here_and_there(
    readers: Mapping[str, tuple[Iterator[Microbatch], list[int]]], count: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU time of all processes and of this one, to take ``count`` microbatches in each round."""
    everywhere: dict[str, list[float]] = {name: [] for name in readers}
    here: dict[str, list[float]] = {name: [] for name in readers}
    copied = torch.empty((BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    for turn in range(ROUNDS + 1):
        for name, (batches, workers) in readers.items():
            theirs, mine = cpu_seconds_of(workers), time.process_time()
            for batch in islice(batches, count):
                copied[: len(batch.images)].copy_(batch.images)
            mine = time.process_time() - mine
            wait_until_idle(workers)
            if turn:
                everywhere[name].append(mine + cpu_seconds_of(workers) - theirs)
                here[name].append(mine)
    return everywhere, here


if __name__ == "__main__":
    sys.exit(main())

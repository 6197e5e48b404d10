"""The progress bar of preprocessing: how much of the input is read, how fast, how long to go."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from vila_mc.data.ingest.rejection import Tally

_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}{postfix}"
_MEGABYTE = 1e6


class Progress(AbstractContextManager["Progress"]):
    """A bar over the bytes of the input; nothing is shown where no terminal looks on.

    Args:
        files: the input. Where records name images of a folder, their bytes are not counted as
            input: the bar says how much is written, too.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        sizes = [file.stat().st_size for file in files]
        self._starts = [0, *accumulate(sizes)]
        self._bar = tqdm(
            total=self._starts[-1],
            unit="B",
            unit_scale=True,
            disable=None,
            bar_format=_FORMAT,
            mininterval=0.5,
        )
        self._first: int | None = None

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, file: int, end: int, tally: Tally, written: int) -> None:
        """Say how far the run is.

        Args:
            file: number of the file that is being read.
            end: bytes of it that are read.
            tally: what became of the records so far.
            written: bytes of the dataset so far.
        """
        if self._bar.disable:
            return
        # A parquet file is smaller than the archive that it stands for.
        position = min(self._starts[file] + end, self._starts[file + 1])
        if self._first is None:  # a run that goes on did not read what came before
            self._first = tally.seen
            self._bar.initial = self._bar.n = position
        seconds = max(self._bar.format_dict["elapsed"], 1e-6)
        rate = (tally.seen - self._first) / seconds
        rejected = tally.rejected.total()
        self._bar.set_postfix_str(
            f"{rate:,.0f} items/s, {rejected:,} rejected, {written / _MEGABYTE:,.0f} MB written",
            refresh=False,
        )
        self._bar.update(position - self._bar.n)

"""What is in a dataset: counts, and how lengths and images are distributed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vila_mc.data.image_codec import open_image
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.provenance import in_short
from vila_mc.errors import DataError, printable
from vila_mc.files import whole_file
from vila_mc.flow import ImagePiece

_LOOKED_AT = 2000
"""Samples whose image headers are read for the histogram of image sizes."""
_BINS = 50
"""Most bins of a histogram."""
_WIDE = 20


def summary_lines(reader: IndexedReader, tile_positions: int, model: str) -> list[str]:
    """The facts of a set, from its manifest and its index.

    Args:
        reader: the dataset, opened for the model's tiling.
        tile_positions: positions that a tile takes in the model: an image, where it is not cut.
        model: in words, which model that is.
    """
    facts = reader.manifest
    tokens, images = reader.token_counts(), reader.image_counts()
    lines = [
        f"kind       {facts.kind}, format version {facts.format_version}",
        f"samples    {facts.samples:,}",
        f"tokens     {facts.tokens:,}; a sample: {_spread(tokens)}",
        f"images     {facts.images:,}; a sample: {_spread(images)}",
    ]
    if facts.images:
        tiles = reader.tile_counts()
        what = "an image"
        if reader.tiling is not None:
            lines.append(f"tiles      {tiles.sum():,}; a sample: {_spread(tiles)}")
            what = "a tile"
        positions = _spread(tokens + tiles * tile_positions)
        lines.append(f"positions  of a row, {tile_positions} for {what} ({model}): {positions}")
    lines += [
        f"bytes      {facts.bin_bytes:,} in {reader.prefix.name}.bin: token ids"
        f"{', and image files as they were' if facts.images else ''}",
        f"tokenizer  {facts.vocab_size:,} tokens, SHA-256 {facts.tokenizer_sha256[:16]}...",
        f"written by vila_mc {facts.tool_version}",
    ]
    lines += [f"source     {key}: {in_short(value)}" for key, value in facts.source.items()]
    return [printable(line) for line in lines]  # a manifest may be a stranger's


def plot_summary(reader: IndexedReader, output: Path) -> None:
    """Histograms as a PNG, see ``draw_summary``."""
    figure = draw_summary(reader)
    with whole_file(output) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_summary(reader: IndexedReader) -> Figure:
    """Histograms: tokens and images of a sample, sides of images; each axis spans its data.

    Where the index has no sides, they are those of ``_LOOKED_AT`` samples, spread evenly over the
    set.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    sides = np.array(_image_sides(reader)).reshape(-1, 2)
    for axis, counts, what in (
        (axes[0], reader.token_counts(), "text tokens of a sample"),
        (axes[1], reader.image_counts(), "images of a sample"),
    ):
        _draw(axis, counts)
        axis.set(xlabel=what, ylabel="samples")
    if len(sides):
        _draw(axes[2], sides, label=["width", "height"])
        axes[2].legend()
    axes[2].set(xlabel=f"pixels ({len(sides):,} images looked at)", ylabel="images")
    return figure


def _draw(axis: Axes, counts: np.ndarray, **options: Any) -> None:
    bins, scale = _bins(counts)
    axis.hist(counts, bins=list(bins), rwidth=0.9, **options)
    axis.set(xscale=scale, xlim=(bins[0], bins[-1]))
    if scale == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bins(counts: np.ndarray) -> tuple[np.ndarray, str]:
    """Edges of bins from the least to the greatest, around whole numbers, and the scale of their
    axis: log where the data span more than ``_WIDE`` times their least."""
    low, high = int(counts.min()), int(counts.max())
    if low > 0 and high > _WIDE * low:
        return np.geomspace(low - 0.5, high + 0.5, _BINS), "log"
    step = max(1, -(-(high - low + 1) // _BINS))
    return np.arange(low, high + step + 1, step) - 0.5, "linear"


def _spread(counts: np.ndarray) -> str:
    low, middle, high = (int(value) for value in np.quantile(counts, [0, 0.5, 1]))
    return f"{counts.mean():,.1f} on average, {low:,} to {high:,}, median {middle:,}"


def _image_sides(reader: IndexedReader) -> Sequence[Sequence[int]] | np.ndarray:
    if reader.sides.all():
        return reader.sides
    chosen = np.unique(np.linspace(0, len(reader) - 1, _LOOKED_AT).round().astype(np.int64))
    sides = []
    for index in chosen[reader.image_counts()[chosen] > 0]:
        for piece in reader.sample(int(index)):
            if isinstance(piece, ImagePiece):
                try:
                    sides.append(open_image(bytes(piece.data), piece.name).size)
                except DataError:  # verify names damaged images
                    continue
    return sides

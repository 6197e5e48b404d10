"""What is in a dataset: counts, and how lengths and images are distributed."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vila_mc.data.image_codec import open_image
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.provenance import in_short
from vila_mc.errors import DataError, printable
from vila_mc.files import whole_file
from vila_mc.flow import ImagePiece

_LOOKED_AT = 2000
"""Samples whose image headers are read for the histogram of image sizes."""


def summary_lines(reader: IndexedReader) -> list[str]:
    """The facts of a set, from its manifest and its index."""
    facts = reader.manifest
    tokens, images = reader.token_counts(), reader.image_counts()
    lines = [
        f"kind       {facts.kind}, format version {facts.format_version}",
        f"samples    {facts.samples:,}",
        f"tokens     {facts.tokens:,}; a sample: {_spread(tokens)}",
        f"images     {facts.images:,}; a sample: {_spread(images)}",
        f"bytes      {facts.bin_bytes:,}",
        f"tokenizer  {facts.vocab_size:,} tokens, SHA-256 {facts.tokenizer_sha256[:16]}...",
        f"written by vila_mc {facts.tool_version}",
    ]
    lines += [f"source     {key}: {in_short(value)}" for key, value in facts.source.items()]
    return [printable(line) for line in lines]  # a manifest may be a stranger's


def plot_summary(reader: IndexedReader, output: Path) -> None:
    """Histograms as a PNG: tokens and images of a sample, sides of images.

    Image sides are those of ``_LOOKED_AT`` samples, spread evenly over the set.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    tokens, images = reader.token_counts(), reader.image_counts()
    axes[0].hist(tokens, bins=np.geomspace(1, max(2, tokens.max() + 1), 50))
    axes[0].set(xscale="log", xlabel="text tokens of a sample", ylabel="samples")
    axes[1].hist(images, bins=np.arange(images.max() + 2) - 0.5, rwidth=0.9)
    axes[1].set(xlabel="images of a sample", ylabel="samples")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    sides = _image_sides(reader)
    if sides:
        axes[2].hist(np.array(sides), bins=40, label=["width", "height"], histtype="step")
        axes[2].legend()
    axes[2].set(xlabel=f"pixels ({len(sides):,} images looked at)", ylabel="images")
    with whole_file(output) as file:
        figure.savefig(file, format="png", dpi=110)


def _spread(counts: np.ndarray) -> str:
    low, middle, high = (int(value) for value in np.quantile(counts, [0, 0.5, 1]))
    return f"{counts.mean():,.1f} on average, {low:,} to {high:,}, median {middle:,}"


def _image_sides(reader: IndexedReader) -> list[tuple[int, int]]:
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

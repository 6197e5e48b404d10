"""Whether a dataset is what it was when it was written, and whether training can read all of it."""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vila_mc.data.image_codec import MAX_MAX_PIXELS
from vila_mc.data.images import check_image
from vila_mc.data.indexed.layout import with_suffix
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ordered_map import check_workers, ordered_map
from vila_mc.errors import DataError
from vila_mc.flow import ImagePiece

_SAMPLES = 64
"""Samples that a process checks at a time."""
_READ_SIZE = 1 << 22


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found."""

    has_checksum: bool
    """Whether the manifest knows a checksum of .bin; sets of version 1 do not."""
    images: int
    """Images that decode."""
    faults: tuple[str, ...]
    """What is wrong, one line each."""


def verify(prefix: Path, workers: int = 1) -> Verified:
    """Compare checksums, decode every image, check every token.

    Args:
        prefix: the dataset.
        workers: processes that decode.

    Raises:
        DataError: the set cannot even be opened, see ``IndexedReader``.
        ConfigError: ``workers`` is out of range.
    """
    check_workers(workers)
    reader = IndexedReader(prefix)
    expected = reader.manifest.bin_sha256
    faults: list[str] = []
    if expected is not None and _checksum(with_suffix(prefix, ".bin")) != expected:
        faults.append(f"{with_suffix(prefix, '.bin')} is damaged: its checksum differs")
    images = 0
    ranges = (range(n, min(n + _SAMPLES, len(reader))) for n in range(0, len(reader), _SAMPLES))
    checked = ordered_map(_Checker, (prefix,), ranges, workers)
    bar = tqdm(total=len(reader), unit=" samples", disable=None)
    with closing(checked) as results, bar:
        for samples, good, bad in results:
            images += good
            faults += bad
            bar.update(samples)
    return Verified(expected is not None, images, tuple(faults))


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    bar = tqdm(total=file.stat().st_size, unit="B", unit_scale=True, disable=None)
    with file.open("rb") as stream, bar:
        while block := stream.read(_READ_SIZE):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


class _Checker:
    """What each process keeps."""

    def __init__(self, prefix: Path) -> None:
        self._reader = IndexedReader(prefix)
        counts = self._reader.image_counts()
        self._first_image = np.cumsum(counts) - counts

    def __call__(self, samples: range) -> tuple[int, int, list[str]]:
        """(samples, images that decode, faults)."""
        good, bad = 0, []
        for index in samples:
            try:
                pieces = self._reader.sample(index)
            except DataError as error:
                bad.append(f"sample {index}: {error}")
                continue
            images = [piece for piece in pieces if isinstance(piece, ImagePiece)]
            for number, image in enumerate(images, start=int(self._first_image[index])):
                try:
                    self._check(image, number)
                    good += 1
                except DataError as error:
                    bad.append(f"sample {index}: {error}")
        return len(samples), good, bad

    def _check(self, image: ImagePiece, number: int) -> None:
        """Raises DataError: it no longer decodes, or is not as large as the index says."""
        sides = check_image(bytes(image.data), image.name, MAX_MAX_PIXELS)
        known = self._reader.sides[number]
        if known.all() and tuple(known) != sides:
            raise DataError(
                f"{image.name} is {sides[0]} x {sides[1]} pixels, but {known[0]} x {known[1]} by "
                "the index"
            )

"""Read an indexed dataset through memory maps: opening reads the index, a sample only itself."""

import hashlib
from pathlib import Path

import numpy as np

from vila_mc.data.indexed.dataset_manifest import DatasetManifest, read_manifest
from vila_mc.data.indexed.layout import (
    DTYPE_CODES,
    HEADER,
    LENGTH,
    MAGIC,
    MODE,
    MODE_IMAGE,
    MODE_PROMPT_TEXT,
    MODE_TRAINED_TEXT,
    POINTER,
    TOKEN,
    VERSION,
    text_dtype,
    with_suffix,
)
from vila_mc.errors import DataError
from vila_mc.flow import ImagePiece, Piece, TextPiece

_REMAKE = "Copy the set again or preprocess the raw data again."


class IndexedReader:
    """A finished dataset. Safe to read from several threads.

    Args:
        prefix: PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.

    Raises:
        DataError: a file is missing, cut off, damaged, or does not belong to the others.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.manifest: DatasetManifest = read_manifest(prefix)
        self._has_modes = self.manifest.kind == "multimodal"
        self._map_index(with_suffix(prefix, ".idx"))
        self._map_data(with_suffix(prefix, ".bin"))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._documents) - 1

    def sample(self, index: int) -> list[Piece]:
        """Pieces of a sample in reading order; the first token is BOS. Nothing is copied.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.prefix}")
        first, last = int(self._documents[index]), int(self._documents[index + 1])
        return [self._piece(position, index) for position in range(first, last)]

    def token_counts(self) -> np.ndarray:
        """[samples] int64: text tokens of each sample, from the index alone."""
        if not self._has_modes:
            return self._sum_per_sample(self._lengths)
        is_text = self._modes != MODE_IMAGE
        return self._sum_per_sample(np.where(is_text, self._lengths // TOKEN.itemsize, 0))

    def image_counts(self) -> np.ndarray:
        """[samples] int64: images of each sample, from the index alone."""
        if not self._has_modes:
            return np.zeros(len(self), np.int64)
        return self._sum_per_sample(self._modes == MODE_IMAGE)

    def sizes(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Text tokens and images of some samples, from their entries of the index alone.

        Args:
            samples: [n] integers below the number of samples, in any order.

        Returns:
            [n] int64 tokens, [n] int64 images.
        """
        first = self._documents[samples]
        counts = self._documents[samples + 1] - first
        starts = np.cumsum(counts) - counts
        pieces = np.repeat(first - starts, counts) + np.arange(counts.sum())
        lengths = self._lengths[pieces].astype(np.int64)
        if not self._has_modes:
            return np.add.reduceat(lengths, starts), np.zeros(len(samples), np.int64)
        is_image = self._modes[pieces] == MODE_IMAGE
        tokens = np.add.reduceat(np.where(is_image, 0, lengths // TOKEN.itemsize), starts)
        return tokens, np.add.reduceat(is_image, starts, dtype=np.int64)

    def _sum_per_sample(self, values: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.add.reduceat(values.astype(np.int64), self._documents[:-1])
        return sums

    def _piece(self, position: int, sample: int) -> Piece:
        start = int(self._pointers[position])
        size = int(self._lengths[position]) * self._dtype.itemsize
        data = self._data[start : start + size]
        if not self._has_modes:
            return TextPiece(data.view(self._dtype), is_trained=True)
        mode = int(self._modes[position])
        if mode == MODE_IMAGE:
            return ImagePiece(data, f"the image of {self.prefix} sample {sample}")
        return TextPiece(data.view(TOKEN), is_trained=mode == MODE_TRAINED_TEXT)

    def _map_index(self, file: Path) -> None:
        index = _map(file)
        if len(index) < HEADER.size:
            raise DataError(f"{file} is cut off. {_REMAKE}")
        magic, version, code, sequences, documents = HEADER.unpack(index[: HEADER.size].tobytes())
        if magic != MAGIC or version != VERSION:
            raise DataError(f"{file} is not a Megatron index of version {VERSION}. {_REMAKE}")
        vocab_size = self.manifest.vocab_size
        expected = DTYPE_CODES[1] if self._has_modes else text_dtype(vocab_size)
        if DTYPE_CODES.get(code) != expected or documents != self.manifest.samples + 1:
            raise DataError(f"{file} does not belong to the manifest beside it. {_REMAKE}")
        self._dtype = expected
        layout: list[tuple[np.dtype, int]] = [
            (LENGTH, sequences),
            (POINTER, sequences),
            (POINTER, documents),
        ]
        layout += [(MODE, sequences)] if self._has_modes else []
        if len(index) != HEADER.size + sum(dtype.itemsize * count for dtype, count in layout):
            raise DataError(f"{file} is cut off or too long: {len(index):,} bytes. {_REMAKE}")
        if hashlib.sha256(index).hexdigest() != self.manifest.idx_sha256:  # without a copy
            raise DataError(f"{file} is damaged: its checksum differs. {_REMAKE}")
        arrays, offset = [], HEADER.size
        for dtype, count in layout:
            arrays.append(np.frombuffer(index, dtype, count, offset))
            offset += dtype.itemsize * count
        self._lengths, self._pointers, self._documents = arrays[:3]
        if self._has_modes:
            self._modes = arrays[3]
            self._check_modes(file)

    def _check_modes(self, file: Path) -> None:
        # The known modes are 0, 1 and 2.
        if self._modes.min() < MODE_TRAINED_TEXT or self._modes.max() > MODE_PROMPT_TEXT:
            raise DataError(f"{file} holds pieces of a kind that this vila_mc does not know.")

    def _map_data(self, file: Path) -> None:
        self._data = _map(file)
        if len(self._data) != self.manifest.bin_bytes:
            raise DataError(
                f"{file} holds {len(self._data):,} bytes, but its manifest says "
                f"{self.manifest.bin_bytes:,}. {_REMAKE}"
            )


def _map(file: Path) -> np.ndarray:
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty. {_REMAKE}")
        return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    except FileNotFoundError:
        raise DataError(f"there is no {file}, though its manifest exists. {_REMAKE}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None

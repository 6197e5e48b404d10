"""Read an indexed dataset through memory maps: opening reads the index, a sample only itself."""

import hashlib
from pathlib import Path

import numpy as np

from vila_mc.data.indexed.dataset_manifest import REMAKE, DatasetManifest, read_manifest
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
            DataError: it does not lie where it should, or holds ids that are no tokens.
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

        Raises:
            DataError: one has neither.
        """
        first = self._documents[samples]
        counts = self._documents[samples + 1] - first
        starts = np.cumsum(counts) - counts
        pieces = np.repeat(first - starts, counts) + np.arange(counts.sum())
        lengths = self._lengths[pieces].astype(np.int64)
        if self._has_modes:
            is_image = self._modes[pieces] == MODE_IMAGE
            tokens = np.add.reduceat(np.where(is_image, 0, lengths // TOKEN.itemsize), starts)
            images = np.add.reduceat(is_image, starts, dtype=np.int64)
        else:
            tokens, images = np.add.reduceat(lengths, starts), np.zeros(len(samples), np.int64)
        if len(samples) and not (tokens + images).all():
            empty = samples[(tokens + images) == 0][0]
            raise DataError(f"{self.prefix} sample {empty} is empty: its .idx is damaged. {REMAKE}")
        return tokens, images

    def _sum_per_sample(self, values: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.add.reduceat(values.astype(np.int64), self._documents[:-1])
        return sums

    def _piece(self, position: int, sample: int) -> Piece:
        start = int(self._pointers[position])
        is_last = position + 1 == len(self._pointers)
        end = len(self._data) if is_last else int(self._pointers[position + 1])
        size = int(self._lengths[position]) * self._dtype.itemsize
        if end - start != size or not 0 <= start <= end <= len(self._data):
            raise DataError(
                f"{self.prefix} sample {sample} does not end where the next begins: its .idx is "
                f"damaged. {REMAKE}"
            )
        data = self._data[start:end]
        if not self._has_modes:
            return TextPiece(self._checked(data.view(self._dtype), sample), is_trained=True)
        mode = int(self._modes[position])
        if mode == MODE_IMAGE:
            return ImagePiece(data, f"the image of {self.prefix} sample {sample}")
        ids = self._checked(data.view(TOKEN), sample)
        return TextPiece(ids, is_trained=mode == MODE_TRAINED_TEXT)

    def _checked(self, ids: np.ndarray, sample: int) -> np.ndarray:
        """The same ids, if all are in the vocabulary."""
        # One look instead of two: as unsigned numbers, negative ones are too large.
        if len(ids) and ids.view(f"<u{ids.itemsize}").max() >= self.manifest.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.manifest.vocab_size)][0]
            raise DataError(
                f"{self.prefix} sample {sample} holds the token id {wrong}, outside its vocabulary "
                f"(0 to {self.manifest.vocab_size - 1}): its .bin is damaged. {REMAKE}"
            )
        return ids

    def _map_index(self, file: Path) -> None:
        index = _map(file)
        if len(index) < HEADER.size:
            raise DataError(f"{file} is cut off. {REMAKE}")
        magic, version, code, sequences, documents = HEADER.unpack(index[: HEADER.size].tobytes())
        if magic != MAGIC or version != VERSION:
            raise DataError(f"{file} is not a Megatron index of version {VERSION}. {REMAKE}")
        vocab_size = self.manifest.vocab_size
        expected = DTYPE_CODES[1] if self._has_modes else text_dtype(vocab_size)
        if DTYPE_CODES.get(code) != expected or documents != self.manifest.samples + 1:
            raise DataError(f"{file} does not belong to the manifest beside it. {REMAKE}")
        self._dtype = expected
        layout: list[tuple[np.dtype, int]] = [
            (LENGTH, sequences),
            (POINTER, sequences),
            (POINTER, documents),
        ]
        layout += [(MODE, sequences)] if self._has_modes else []
        if len(index) != HEADER.size + sum(dtype.itemsize * count for dtype, count in layout):
            raise DataError(f"{file} is cut off or too long: {len(index):,} bytes. {REMAKE}")
        if hashlib.sha256(index).hexdigest() != self.manifest.idx_sha256:  # without a copy
            raise DataError(f"{file} is damaged: its checksum differs. {REMAKE}")
        arrays, offset = [], HEADER.size
        for dtype, count in layout:
            arrays.append(np.frombuffer(index, dtype, count, offset))
            offset += dtype.itemsize * count
        self._lengths, self._pointers, self._documents = arrays[:3]
        self._modes = arrays[3] if self._has_modes else np.empty(0, MODE)
        fault = self._fault_of_index()
        if fault is not None:
            raise DataError(f"{file} is damaged: {fault}. {REMAKE}")

    def _fault_of_index(self) -> str | None:
        """What no writer writes; a checksum proves no more than that nothing changed after it.

        The samples divide the pieces among themselves in order. That each piece ends where the next
        begins, and that no sample is empty, is checked where samples are read: here it would take a
        tenth of the time to open a set.
        """
        lengths, pointers, documents = self._lengths, self._pointers, self._documents
        if len(documents) < 2:
            return "it holds no samples"
        if documents[0] or documents[-1] != len(lengths) or (documents[1:] <= documents[:-1]).any():
            return "its samples are not in order, or one has no pieces"
        every_bit = int(np.bitwise_or.reduce(lengths))  # the sign as well
        if every_bit < 0:
            return "a piece has a negative length"
        if self._has_modes and every_bit % TOKEN.itemsize:
            return f"a piece does not end on a multiple of {TOKEN.itemsize} bytes"
        end = int(pointers[-1]) + int(lengths[-1]) * self._dtype.itemsize
        if pointers[0] or end != self.manifest.bin_bytes:
            return "its pieces do not fill .bin"
        # The known modes are 0, 1 and 2.
        if (
            self._has_modes
            and not MODE_TRAINED_TEXT <= self._modes.min() <= self._modes.max() <= MODE_PROMPT_TEXT
        ):
            return "it holds pieces of a kind that this vila_mc does not know"
        return None

    def _map_data(self, file: Path) -> None:
        self._data = _map(file)
        if len(self._data) != self.manifest.bin_bytes:
            raise DataError(
                f"{file} holds {len(self._data):,} bytes, but its manifest says "
                f"{self.manifest.bin_bytes:,}. {REMAKE}"
            )


def _map(file: Path) -> np.ndarray:
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty. {REMAKE}")
        return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    except FileNotFoundError:
        raise DataError(f"there is no {file}, though its manifest exists. {REMAKE}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None

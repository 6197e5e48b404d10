"""Read an indexed dataset through memory maps: opening reads the index, a sample only itself."""

import hashlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vila_mc.data.image_codec import open_image
from vila_mc.data.indexed.dataset_manifest import (
    REMAKE,
    WITH_SIDES,
    DatasetManifest,
    read_manifest,
)
from vila_mc.data.indexed.image_sides import ImageSides
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
    SIDE,
    TOKEN,
    VERSION,
    text_dtype,
    with_suffix,
)
from vila_mc.data.tiles import Tiling
from vila_mc.errors import DataError
from vila_mc.flow import ImagePiece, Piece, TextPiece


class IndexedReader:
    """A finished dataset. Safe to read from several threads.

    Args:
        prefix: PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.
        tiling: how a model cuts images into the tiles that are counted; None if it does not, and
            each is one. Where the index has no sides of an image, its header is read now.
        index_alone: read no sample. PREFIX.bin need not be there unless headers have to be read.

    Raises:
        DataError: a file is missing, cut off, damaged, or does not belong to the others.
    """

    def __init__(
        self, prefix: Path, tiling: Tiling | None = None, *, index_alone: bool = False
    ) -> None:
        self.prefix = prefix
        self.manifest: DatasetManifest = read_manifest(prefix)
        self._has_modes = self.manifest.kind == "multimodal"
        self._map_index(with_suffix(prefix, ".idx"))
        self.tiling = tiling
        asks_headers = tiling is not None and bool((self.sides == 0).any())
        self._data = np.empty(0, np.uint8)
        if asks_headers or not index_alone:
            self._map_data(with_suffix(prefix, ".bin"))
        self._cut: ImageSides | None = None
        if tiling is not None and self._has_modes:
            self._cut = ImageSides(self._modes, self._every_side(), tiling)

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

    def tile_counts(self) -> np.ndarray:
        """[samples] int64: tiles of each sample's images, from the index alone."""
        if self._cut is None:
            return self.image_counts()
        tiles = np.zeros(len(self._modes), np.uint8)
        tiles[self._modes == MODE_IMAGE] = self._cut.tiles
        return self._sum_per_sample(tiles)

    def sizes(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Text tokens and tiles of some samples, from their entries of the index alone.

        Args:
            samples: [n] integers below the number of samples, in any order.

        Returns:
            [n] int64 tokens, [n] int64 tiles: images, where they are not cut.

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
            of_piece = is_image.astype(np.int64)
            if self._cut is not None:
                of_piece[is_image] = self._cut.tiles[self._cut.numbers(pieces[is_image])]
            tiles = np.add.reduceat(of_piece, starts)
        else:
            tokens, tiles = np.add.reduceat(lengths, starts), np.zeros(len(samples), np.int64)
        if len(samples) and not (tokens + tiles).all():
            empty = samples[(tokens + tiles) == 0][0]
            raise DataError(f"{self.prefix} sample {empty} is empty: its .idx is damaged. {REMAKE}")
        return tokens, tiles

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
            sides = None if self._cut is None else self._cut.of(position)
            return ImagePiece(data, self._name(sample), sides)
        ids = self._checked(data.view(TOKEN), sample)
        return TextPiece(ids, is_trained=mode == MODE_TRAINED_TEXT)

    def _name(self, sample: int) -> str:
        return f"the image of {self.prefix} sample {sample}"

    def _every_side(self) -> np.ndarray:
        """[images, 2] width and height: those of the index, else of the headers of the images.

        An image whose header cannot be read counts as one tile; who decodes it will be told.
        """
        numbers = np.flatnonzero((self.sides == 0).any(axis=1))
        if not len(numbers):
            return self.sides
        sides, pieces = self.sides.copy(), np.flatnonzero(self._modes == MODE_IMAGE)[numbers]
        samples = np.searchsorted(self._documents, pieces, side="right") - 1
        unknown = zip(numbers.tolist(), pieces.tolist(), samples.tolist(), strict=True)
        what = f"sizes of images in {self.prefix.name}"
        for number, piece, sample in tqdm(unknown, what, len(numbers), disable=None):
            stored = self._piece(piece, sample)
            assert isinstance(stored, ImagePiece)
            try:
                sides[number] = open_image(bytes(stored.data), stored.name).size
            except DataError:
                sides[number] = 1
        return sides

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
        has_sides = self._has_modes and self.manifest.format_version >= WITH_SIDES
        layout += [(SIDE, 2 * self.manifest.images)] if has_sides else []
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
        images = int(np.count_nonzero(self._modes == MODE_IMAGE))
        sides = arrays[4] if has_sides else np.zeros(2 * images, SIDE)
        self.sides: np.ndarray = sides.reshape(-1, 2)
        """[images, 2] int32: width and height of each image; 0 where the index does not know."""
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
        if np.count_nonzero(self._modes == MODE_IMAGE) != len(self.sides):
            return "it has another number of images than its manifest"
        if self.sides.min(initial=0) < 0:
            return "an image has a negative side"
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

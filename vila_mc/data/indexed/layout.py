"""Megatron's .bin/.idx layout and what we add, written down once for the writer and the reader.

docs/data_format.md describes it for people; Megatron-Core's ``IndexedDataset`` reads it too.
"""

import struct
from pathlib import Path

import numpy as np

from vila_mc.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, number of sequences, number of document indices."""
VERSION = 1

DTYPE_CODES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    4: np.dtype("<i4"),
    8: np.dtype("<u2"),
}
"""The codes that vila_mc writes; Megatron knows 2 i8, 3 i16, 5 i64, 6 f64 and 7 f32 besides."""

LENGTH = np.dtype("<i4")
POINTER = np.dtype("<i8")
MODE = np.dtype("i1")
SIDE = np.dtype("<i4")
"""Width and height of each image, in pixels, behind what Megatron reads; 0 where nobody looked."""
TOKEN = np.dtype("<i4")
"""Token ids inside a multimodal set."""

MODE_TRAINED_TEXT = 0
MODE_IMAGE = 1
MODE_PROMPT_TEXT = 2
"""Text that is read but not trained on: prompts, and BOS in front of an image."""

LARGEST_U16_VOCABULARY = 65_500
"""Below it Megatron-LM stores text-only tokens as u16."""


def text_dtype(vocab_size: int) -> np.dtype:
    """Type of the tokens of a text-only set, as Megatron-LM chooses it."""
    return DTYPE_CODES[8] if vocab_size < LARGEST_U16_VOCABULARY else DTYPE_CODES[4]


def dtype_code(dtype: np.dtype) -> int:
    """Code of a type in the header."""
    return next(code for code, known in DTYPE_CODES.items() if known == dtype)


def with_suffix(prefix: Path, suffix: str) -> Path:
    """``PREFIX`` + ``suffix``; dots in the prefix are kept. Raises DataError: it has no name."""
    if not prefix.name:
        raise DataError(f"{prefix} is no prefix of a dataset. Add a name, such as data/pairs.")
    return prefix.with_name(prefix.name + suffix)

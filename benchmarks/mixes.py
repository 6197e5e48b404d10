"""Synthetic datasets with the sizes of VILA's sources, for benchmarks of the data side.

Only sizes are modelled: images and text tokens of each sample. Means are those of the paper (arXiv
2312.07533, section 3.2): MMC4-core 4.0 images and 490 text tokens a document, at most 6 images;
COYO 22.7 tokens and 1 image. Spreads are assumed log-normal. The instruction and text-only sets are
assumed: 320 and 220 tokens on average.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vila_mc import __version__
from vila_mc.data.indexed.dataset_manifest import (
    FORMAT_VERSION,
    SUFFIX,
    DatasetManifest,
    to_json,
)
from vila_mc.data.indexed.layout import (
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
)
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.files import sha256_of

VISUAL_TOKENS = 144
"""Of an image of 336 px after the 2x2 downsample."""
SEQUENCE_LENGTH = 4096

Sizes = tuple[np.ndarray, np.ndarray]
"""Text tokens and images of each sample."""


def documents(choose: np.random.Generator, count: int) -> Sizes:
    """MMC4-like: 1 to 6 images, 490 tokens on average."""
    return _tokens(choose, count, 490, 0.7), np.clip(choose.poisson(3.0, count) + 1, 1, 6)


def pairs(choose: np.random.Generator, count: int) -> Sizes:
    """COYO-like: one image, 22.7 tokens on average."""
    return _tokens(choose, count, 22.7, 0.5), np.ones(count, np.int64)


def instructions(choose: np.random.Generator, count: int) -> Sizes:
    """LLaVA-like: one image, 320 tokens on average."""
    return _tokens(choose, count, 320, 0.8), np.ones(count, np.int64)


def text(choose: np.random.Generator, count: int) -> Sizes:
    """FLAN-like: no image, 220 tokens on average."""
    return _tokens(choose, count, 220, 0.9), np.zeros(count, np.int64)


Source = Callable[[np.random.Generator, int], Sizes]
MIXES: dict[str, dict[Source, float]] = {
    "pretrain": {documents: 0.5, pairs: 0.5},
    "joint": {documents: 0.4, pairs: 0.45, text: 0.15},
    "sft": {instructions: 0.6, text: 0.4},
}
"""Shares of the samples. Unpacked, "joint" pads 87 % of 4096 positions away."""


def jpeg(seed: int, width: int = 640, height: int = 480) -> bytes:
    """A picture about as hard to decode as a photograph: smooth shapes under fine grain."""
    choose = np.random.default_rng(seed)
    coarse = choose.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = choose.integers(-6, 7, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_tokenizer(folder: Path) -> Path:
    """A small tokenizer; only its presence matters."""
    path = folder / "tokenizer.model"
    if not path.exists():
        lines = [
            f"sentence {number} of a text with {chr(97 + number % 26) * 5}" for number in range(500)
        ]
        train_tokenizer(lines, path, 300)
    return path


def write_set(
    prefix: Path, sizes: Sizes, tokenizer: Path, picture: bytes, readable: Sequence[int] = ()
) -> None:
    """An indexed dataset of these sizes: BOS, the images, the text.

    Its index is that of a real set. Its data is a file of holes, read as zeros, so that a million
    samples fit on any disk; only the images of the samples ``readable`` decode.
    """
    tokens, images = sizes
    padded = picture + bytes(-len(picture) % TOKEN.itemsize)
    documents = np.concatenate([[0], np.cumsum(images + 2)])
    first, last = documents[:-1], documents[1:] - 1
    modes = np.full(documents[-1], MODE_IMAGE, MODE)
    lengths = np.full(documents[-1], len(padded), LENGTH)
    modes[first], lengths[first] = MODE_PROMPT_TEXT, TOKEN.itemsize
    modes[last], lengths[last] = MODE_TRAINED_TEXT, np.maximum(tokens - 1, 1) * TOKEN.itemsize
    ends = np.cumsum(lengths, dtype=POINTER)
    pointers = ends - lengths
    with prefix.with_name(prefix.name + ".bin").open("wb") as file:
        file.truncate(int(ends[-1]))
        for sample in readable:
            for piece in range(int(first[sample]) + 1, int(last[sample])):
                file.seek(int(pointers[piece]))
                file.write(padded)
    index = prefix.with_name(prefix.name + ".idx")
    with index.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, 1, len(lengths), len(documents)))
        for array in (lengths, pointers, documents.astype(POINTER), modes):
            file.write(array.tobytes())
    made = Tokenizer(tokenizer)
    manifest = DatasetManifest(
        format_version=FORMAT_VERSION,
        kind="multimodal",
        tokenizer_sha256=made.fingerprint(),
        vocab_size=made.vocab_size,
        samples=len(tokens),
        tokens=int(tokens.sum()),
        images=int(images.sum()),
        bin_bytes=int(ends[-1]),
        idx_sha256=sha256_of(index),
        source={},
        tool_version=__version__,
    )
    prefix.with_name(prefix.name + SUFFIX).write_text(to_json(manifest), encoding="utf-8")


def _tokens(choose: np.random.Generator, count: int, mean: float, sigma: float) -> np.ndarray:
    """Log-normal lengths of this mean, and at least 4."""
    drawn = choose.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.maximum(drawn.astype(np.int64), 4)

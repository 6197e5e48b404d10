"""A tiny corpus of sentences and pictures, and the indexed dataset made of it."""

import io
import random
import string
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.pieces import text_piece
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.flow import EncodedSample, ImagePiece

VOCABULARY = 400


def random_sentences(count: int) -> list[str]:
    """Sentences of made-up words, enough letters for a tokenizer of a few hundred tokens."""
    choose = random.Random(0)
    words = ["".join(choose.choices(string.ascii_lowercase, k=5)) for _ in range(100)]
    return [" ".join(choose.choices(words, k=8)) for _ in range(count)]


def write_dataset(
    folder: Path, num_samples: int = 24, *, with_images: bool = True
) -> tuple[Path, Path]:
    """Captioned pictures and, every third one, plain text; text alone without images.

    Returns:
        The tokenizer and the prefix of the dataset.
    """
    sentences = random_sentences(200)
    tokenizer_path, prefix = folder / "tokenizer.model", folder / "pairs"
    train_tokenizer(sentences, tokenizer_path, VOCABULARY)
    tokenizer = Tokenizer(tokenizer_path)
    assert tokenizer.bos_id is not None
    bos = text_piece((tokenizer.bos_id,), is_trained=False)
    with IndexedWriter(prefix, "multimodal", tokenizer) as writer:
        for number in range(num_samples):
            ids = (*tokenizer.encode(sentences[number]), tokenizer.eos_id)
            image = (
                []
                if number % 3 == 0 or not with_images
                else [ImagePiece(_picture(number), "an image")]
            )
            writer.add(EncodedSample((bos, *image, text_piece(ids, is_trained=True))))
        writer.finish({})
    return tokenizer_path, prefix


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

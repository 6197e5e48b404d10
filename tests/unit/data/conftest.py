"""Small real things that the data tests share: a tokenizer, images, a model, finished sets."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.pieces import text_piece
from tests.support.tiles import cut_into_tiles
from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.flow import EncodedSample, ImagePiece

VOCAB_SIZE = 400

SENTENCES = [
    f"A chat about the picture number {number}: what colour is the quick brown fox, and why?"
    for number in range(200)
] + ["The assistant gives helpful, detailed, and polite answers.", "USER: ASSISTANT: [INST] <s>"]


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained Llama-like tokenizer of ``VOCAB_SIZE`` tokens."""
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(SENTENCES, path, VOCAB_SIZE)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path)


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """``make_image(width, height, format, seed)``: an encoded picture of smooth noise."""

    def make(width: int = 40, height: int = 30, format: str = "PNG", seed: int = 0) -> bytes:
        small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        image.save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    """56-pixel images, 14-pixel patches, folded by 2: an image is 4 visual tokens."""
    return ModelConfig(
        vision=VisionConfig(image_size=56, patch_size=14, width=16, layers=2, heads=2, ffn=32),
        connector=ConnectorConfig(kind="mlp_downsample"),
        language=LanguageConfig(
            layers=1, width=16, ffn=32, heads=2, kv_heads=2, vocab_size=VOCAB_SIZE
        ),
    )


@pytest.fixture(scope="session")
def cut(model: ModelConfig) -> ModelConfig:
    """``model`` with images in tiles of 56 pixels and 4 visual tokens."""
    return cut_into_tiles(model)


@pytest.fixture(scope="session")
def make_set(tokenizer: Tokenizer, make_image: Callable[..., bytes]) -> Callable[..., Path]:
    """``make_set(prefix, samples)``: a multimodal set, each sample with a token of its own."""

    def make(prefix: Path, samples: int, first_id: int = 10) -> Path:
        with IndexedWriter(prefix, "multimodal", tokenizer) as writer:
            for number in range(samples):
                image = ImagePiece(make_image(seed=number), "an image")
                answer = text_piece((first_id + number, 9, tokenizer.eos_id), True)
                writer.add(EncodedSample((text_piece((tokenizer.bos_id, 8), False), image, answer)))
            writer.finish({})
        return prefix

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """``write_lines(name, records)``: a JSON Lines file; strings are written as they are."""

    def write(name: str, records: Iterable[Any]) -> Path:
        path = tmp_path / name
        lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], tokenizer_path: Path
) -> DataConfig:
    """Two sets; the third token of each sample tells which one it is."""
    folder = tmp_path_factory.mktemp("sets")
    entries = (
        BlendEntry(path=make_set(folder / "large", 20, first_id=100), weight=3),
        BlendEntry(path=make_set(folder / "small", 5, first_id=200), weight=1),
    )
    return DataConfig(blend=entries, tokenizer=tokenizer_path, sequence_length=16, workers=0)

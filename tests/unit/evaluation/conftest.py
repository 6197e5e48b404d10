"""A tiny model with a tokenizer and pictures, untrained: its answers mean nothing, but stay."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.support.tiny import tiny_run
from tests.support.tiny_data import VOCABULARY, random_sentences
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed


@dataclass(frozen=True)
class Subject:
    """Who is asked."""

    model: VilaModel
    tokenizer: Tokenizer
    images: Path


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    folder = tmp_path_factory.mktemp("subject")
    train_tokenizer(random_sentences(200), folder / "t.model", VOCABULARY)
    for name, colour in (("red.png", (200, 30, 10)), ("blue.png", (10, 30, 220))):
        Image.new("RGB", (30, 20), colour).save(folder / name)
    language = dict(layers=2, width=64, ffn=96, heads=4, kv_heads=2, max_positions=320)
    config = tiny_run(model={"language": language | {"vocab_size": VOCABULARY}})
    with distributed(config.parallel, seed=1) as ranks:
        yield Subject(build_stages(config, ranks)[0].eval(), Tokenizer(folder / "t.model"), folder)

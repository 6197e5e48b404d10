"""Tokenizers without BOS: samples start with what is said, and every tool reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.inspection.page import sample_page
from vila_mc.data.inspection.summary import summary_lines
from vila_mc.data.inspection.verify_dataset import verify
from vila_mc.data.inspection.write_records import export
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.flow import ImagePiece, TextPiece

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer whose samples start without BOS, as Qwen's."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    (tmp_path / "t").mkdir()
    made.save(str(tmp_path / "t" / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|end|>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path / "t"


def test_every_kind(
    tmp_path: Path, folder: Path, write_lines: Callable[..., Path], make_image: Callable[..., bytes]
) -> None:
    (tmp_path / "a.png").write_bytes(make_image())
    images = ImageFolder(tmp_path)
    said = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]
    sources: dict[str, Any] = {
        "text": TextSource([write_lines("t.jsonl", [{"text": "a b"}])]),
        "pairs": PairSource([write_lines("p.jsonl", [{"image": "a.png", "text": "c"}])], images),
        "talks": ConversationSource(
            [write_lines("c.jsonl", [{"image": "a.png", "conversations": said}])], images
        ),
    }
    tokenizer = Tokenizer(folder)
    for name, source in sources.items():
        kind: Any = "text" if name == "text" else "multimodal"
        preprocess(source, tmp_path / name, kind, folder, facts={})
        reader = IndexedReader(tmp_path / name)
        pieces = reader.sample(0)
        assert isinstance(pieces[0], ImagePiece) == (name == "pairs")
        texts = [piece for piece in pieces if isinstance(piece, TextPiece)]
        assert texts[-1].ids[-1] == tokenizer.eos_id
        assert sum(int((piece.ids == tokenizer.eos_id).sum()) for piece in texts) == 1
        assert "<html" in sample_page(reader, 0, tokenizer, tile_positions=4)
        assert summary_lines(reader, 4, "a model")
        assert not verify(tmp_path / name).faults
        export(reader, tokenizer, tmp_path / f"{name}.out")
        (line,) = (tmp_path / f"{name}.out" / "samples.jsonl").read_text().splitlines()
        expected = {"text": {"text"}, "pairs": {"image", "caption"}, "talks": {"parts"}}
        assert set(json.loads(line)) == expected[name]


def test_an_image_at_the_start_of_a_row(
    make_image: Callable[..., bytes], model: ModelConfig
) -> None:

    text = TextPiece(np.array([5, 6, 7]), is_trained=True)
    batch = collate([[[ImagePiece(make_image(), "x"), text]]], model, 8, needs_images=True)
    assert batch.image_starts.tolist() == [[0, 0]]
    assert batch.labels[0].tolist() == [-100, -100, -100, 5, 6, 7, -100, -100]

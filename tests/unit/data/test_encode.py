"""Samples to token ids and images."""

from collections.abc import Callable
from pathlib import Path

from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.flow import ImagePiece, RawImage, RawSample, RawText

Write = Callable[..., Path]


def test_text_that_is_not_unicode_is_rejected(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path
) -> None:
    file = write_lines("a.jsonl", ['{"text": "half \\ud800"}', {"text": "whole"}])
    made = preprocess(
        TextSource([file]),
        tmp_path / "set",
        "text",
        tokenizer_path,
        facts={},
        limit=RejectionLimit(count=1),
    )
    assert made.rejected == {"not valid Unicode": 1}


def test_text_document_is_bos_text_eos(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    file = write_lines("a.jsonl", [{"text": "the <s> fox"}])
    preprocess(TextSource([file]), tmp_path / "set", "text", tokenizer_path, facts={})
    (piece,) = IndexedReader(tmp_path / "set").sample(0)
    assert piece.is_trained
    assert piece.ids.tolist() == [1, *tokenizer.encode("the <s> fox"), 2]


def test_encode_joins_texts_of_one_kind(
    tokenizer: Tokenizer, make_image: Callable[..., bytes]
) -> None:
    pieces = (
        RawText("USER:", is_trained=False),
        RawImage(make_image(), "x"),
        RawText("a", is_trained=False),
        RawText(" b", is_trained=False),
        RawText(" c", is_trained=True, ends_turn=True),
    )
    prompt, image, between, answer = encode_sample(RawSample(pieces, 1), tokenizer, 10**6).pieces
    assert isinstance(image, ImagePiece)
    assert (image.data, image.name) == (make_image(), "x")
    texts = [(piece.ids.tolist(), piece.is_trained) for piece in (prompt, between, answer)]
    assert texts == [
        ([1, *tokenizer.encode("USER:")], False),
        ([*tokenizer.encode("a"), *tokenizer.encode("b")], False),
        ([*tokenizer.encode("c"), 2], True),
    ]

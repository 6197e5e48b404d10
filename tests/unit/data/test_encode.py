"""Samples to token ids and images."""

from collections.abc import Callable
from pathlib import Path

from vila_mc.data.chat_templates import conversation_pieces, find_template
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
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


def test_no_space_is_read_before_a_text_that_goes_on(tokenizer: Tokenizer) -> None:
    whole = "the fox: a quick\nbrown fox"
    for cut in range(1, len(whole)):
        texts = [whole[:cut], whole[cut:]]
        first, second = tokenizer.encode_batch(texts, [False, True])
        assert tokenizer.decode([*first, *second]) == whole
    for text in ("fox", " fox", "  fox", "\nfox"):
        (alone,) = tokenizer.encode_batch([text], [True])
        assert tokenizer.decode([*tokenizer.encode("a"), *alone]) == f"a{text}"


def test_a_template_without_a_space_has_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text('first: "Q:"\nnext: "Q:"\nclose: "\\nA:"\nend: "!{eos}"\nafter: "\\n"\n')
    turns = [
        Turn("user", "why"),
        Turn("assistant", "so"),
        Turn("user", "b"),
        Turn("assistant", "c"),
    ]
    pieces = conversation_pieces(find_template(file, tokenizer), turns, [])
    prompt, answer, between, last, end = encode_sample(RawSample(pieces, 1), tokenizer, 1).pieces
    assert tokenizer.decode(answer.ids.tolist()) == "so!"
    assert tokenizer.token(int(answer.ids[0])).startswith("s")
    assert answer.ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(prompt.ids.tolist()) == "Q:why\nA:"
    assert [piece.is_trained for piece in (prompt, answer, between, last, end)] == [
        *(False, True) * 2,
        False,
    ]

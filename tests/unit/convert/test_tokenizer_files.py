"""The converted tokenizer gives SentencePiece's own ids, or is refused."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer as BackendTokenizer

from tests.unit.convert.independent_vila import SENTENCES
from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer
from vila_mc.errors import CheckpointError

TEXTS = (
    "",
    " ",
    "   ",
    "Two dogs",
    " leading",
    "trailing ",
    "  two   three  ",
    "12:30, 1995 007 3.14159",
    "line\nline\n\n\n",
    "\ttab\r\n",
    "naïve café — 中文 日本語 😀 \u200b\u00a0é",
    "</s>",
    "<s>a</s> <unk> <image> <0x41>",
    "\u2581raw\u2581\u2581space ",
    "nul\0byte",
    "aaaaaaaaa abababab banana",
)


def _train(path: Path, **options: Any) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s for s in SENTENCES for _ in range(9)]),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{
            "model_type": "bpe",
            "vocab_size": 401,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    path.write_bytes(model.getvalue())
    return path


def _assert_equal(path: Path, tmp_path: Path, with_decoding: bool = True) -> None:
    write_tokenizer(load_convertible(path, 401), tmp_path, 256)
    converted = BackendTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    converted.encode_special_tokens = True
    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    choose = random.Random(0)
    characters = "abnd  .,0123\n</s>\u2581é中😀T"
    fuzz = ["".join(choose.choices(characters, k=choose.randint(1, 40))) for _ in range(3000)]
    for text in (*TEXTS, *SENTENCES, *fuzz):
        ids = converted.encode(text, add_special_tokens=False).ids
        assert ids == original.encode(text), text
        assert not with_decoding or converted.decode(ids) == original.decode(ids), text


@pytest.mark.parametrize(
    "options",
    [
        {"split_digits": True},
        {"allow_whitespace_only_pieces": True},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "vocab_size": 145},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ids_and_text_equal_sentencepiece(options: dict[str, Any], tmp_path: Path) -> None:
    # Unknown characters and swallowed spaces cannot be decoded; each side shows them its own way.
    is_lossless = not {"byte_fallback", "remove_extra_whitespaces"} & options.keys()
    _assert_equal(_train(tmp_path / "t.model", **options), tmp_path, is_lossless)


def test_our_own_trainer_makes_convertible_tokenizers(tokenizer_path: Path, tmp_path: Path) -> None:
    _assert_equal(tokenizer_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "not a BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises its text"),
        ({"user_defined_symbols": ["<image>"]}, "user-defined symbols"),
        ({"bos_id": -1}, "lacks <s> or </s>"),
    ],
)
def test_tokenizers_without_an_exact_counterpart_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = _train(tmp_path / "t.model", **options)
    with pytest.raises(CheckpointError, match=message):
        load_convertible(path, 500)


def test_more_tokens_than_the_model_has_are_refused(tokenizer_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"401 tokens, but .*vocab_size is 400"):
        load_convertible(tokenizer_path, 400)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff", b"\x0a\x02\x08\x01"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        load_convertible(tmp_path / "t.model", 401)


def test_every_truncation_is_refused_or_read(tokenizer_path: Path, tmp_path: Path) -> None:
    data = tokenizer_path.read_bytes()
    for length in range(0, len(data), 97):
        (tmp_path / "t.model").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_convertible(tmp_path / "t.model", 401)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.model cannot be read"):
        load_convertible(tmp_path / "none.model", 401)

"""Tokenizers: special tokens never come from text, errors are actionable, training repeats."""

import gzip
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from vila_mc.data.ingest.corpus_text import read_sentences
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import DataError

WORDS = [f"number {n} of the quick brown foxes" for n in range(100)]


def test_special_ids_are_llamas(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 400)


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<image>", "<0x0A>", "a</s><s> b"])
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert min(ids) > 2
    assert tokenizer.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token > 2 for token in ids)


def test_encode_refuses_half_a_surrogate_pair(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="not valid Unicode: character 1"):
        tokenizer.encode("a\ud800")


def test_decode_refuses_ids_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"token id 400 is outside .*0 to 399.* hardly learnt"):
        tokenizer.decode([5, 400])


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no tokenizer"):
        Tokenizer(tmp_path / "no.model")


def test_unreadable_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer(tmp_path / "file" / "tiny.model")
    with pytest.raises(DataError, match=r"holds neither tokenizer\.json nor"):
        Tokenizer(tmp_path)


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer(tmp_path / "junk.model")


@pytest.mark.parametrize(("name", "option"), [("BOS", "bos_id"), ("EOS", "eos_id")])
def test_model_without_bos_or_eos(tmp_path: Path, name: str, option: str) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_prefix=str(tmp_path / "bare"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
        **{option: -1},
    )
    with pytest.raises(DataError, match=f"has no {name} token"):
        Tokenizer(tmp_path / "bare.model")


def test_training_twice_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(WORDS, tmp_path / name, 300)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Tokenizer(tmp_path / "a").fingerprint() == Tokenizer(tmp_path / "b").fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_digits_are_split(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("1234")]
    assert [piece for piece in pieces if piece.strip()] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("size", "message"), [(20, "is too small"), (9000, r"too large for this text, .* at most \d+")]
)
def test_impossible_vocabulary(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_tokenizer(WORDS, tmp_path / "x.model", size)
    assert not list(tmp_path.iterdir())


def test_training_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", "\n"], tmp_path / "x.model", 300)


def test_training_takes_anything_as_text(tmp_path: Path) -> None:
    odd = [*WORDS, "nul \0 and half \ud800 a pair", "x" * 5000]
    assert train_tokenizer(odd, tmp_path / "x.model", 320) == len(WORDS) + 1 + 5


def test_sentences_of_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.json").write_text(
        json.dumps([{"id": "no", "conversations": [{"from": "human", "value": "three"}]}])
    )
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('not json\n{"text_list": ["four", "five"], "url": "no"}\n{"caption": "six"}\n')
    files = [tmp_path / name for name in ("a.txt", "b.json", "c.jsonl.gz")]
    found = [sentence.strip() for sentence in read_sentences(files)]
    assert found == ["one", "two", "three", "four", "five", "six"]


def test_sentences_of_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_sentences([tmp_path / "a.txt"]))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_sentences([tmp_path / "none.txt"]))


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"eos_token": "<|im_end|>"}, "eos_token <|im_end|>, but in the model it is </s>"),
        ({"bos_token": {"content": "<|a|>"}}, "bos_token <|a|>, but in the model it is <s>"),
        ({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}, None),
        ({"bos_token": "", "eos_token": ""}, None),
        ({"bos_token": None}, None),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_end_of_an_answer_is_the_one_that_is_named(
    tokenizer_path: Path, tmp_path: Path, file: str, config: dict[str, object], refused: str | None
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    (tmp_path / file).write_text(json.dumps(config))
    if refused is None:
        assert Tokenizer(tmp_path).eos_id == 2
    else:
        with pytest.raises(DataError) as caught:
            Tokenizer(tmp_path)
        assert refused in str(caught.value)

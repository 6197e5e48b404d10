"""The native byte-pair encoder gives SentencePiece's ids, whatever the text."""

import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_mc.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.kernels.text import BytePairEncoder, is_built

needs_library = pytest.mark.skipif(not is_built(), reason="csrc/text is not built")

SENTENCES = [
    f"{word} number {n}:  the quick, brown fox's {word}'s jumps über {n * n} lazy dogs… 狐が走る。"
    for n, word in enumerate(
        ["Tokenisation", "segmenting", "it", "hasn't", "re-read", "x=y+1;"] * 40
    )
]
# Spaces of both kinds side by side, bytes outside the vocabulary, runs without any space.
CHARACTERS = " \u2581abcdefst'.,:0123\n\té漢狐😀\0<>|/"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "a.model"
    train_tokenizer(SENTENCES, path, 440)
    return path


@pytest.fixture(scope="module")
def native(model: Path) -> BytePairEncoder:
    encoder = SentencePieceTokenizer(model, model.read_bytes())._fast
    assert encoder is not None
    return encoder


@pytest.fixture(scope="module")
def original(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


@needs_library
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(CHARACTERS, max_size=80),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        ),
        max_size=5,
    )
)
def test_ids_are_sentencepieces(
    native: BytePairEncoder, original: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    assert [ids.tolist() for ids in native.encode_batch(texts)] == original.encode(texts)


@needs_library
def test_long_segments_and_known_words(
    native: BytePairEncoder, original: sentencepiece.SentencePieceProcessor
) -> None:
    choose = random.Random(1)
    long = ["".join(choose.choices("abcdefstjumps狐", k=3000)), "a" * 999, " " * 999]
    texts = [*long, *SENTENCES, " ".join(SENTENCES), *SENTENCES]  # the second time from memory
    assert [ids.tolist() for ids in native.encode_batch(texts)] == original.encode(texts)


@needs_library
def test_memory_of_words_is_bounded(
    native: BytePairEncoder, original: sentencepiece.SentencePieceProcessor
) -> None:
    words = " ".join(f"{n:x}s" for n in range(300_000))
    text = f"{words} the quick brown fox"
    assert native.encode_batch([text])[0].tolist() == original.encode(text)


def test_models_that_are_not_of_this_kind_are_left_to_sentencepiece(tmp_path: Path) -> None:
    others: tuple[dict[str, Any], ...] = (
        {"model_type": "unigram"},
        {"normalization_rule_name": "nmt_nfkc"},
        {"byte_fallback": False},
        {"user_defined_symbols": ["<image>"]},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
    )
    for number, options in enumerate(others):
        common = {
            "model_type": "bpe",
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "byte_fallback": True,
        }
        prefix = tmp_path / str(number)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_prefix=str(prefix),
            vocab_size=500,
            hard_vocab_limit=False,
            minloglevel=2,
            **(common | options),
        )
        content = Path(f"{prefix}.model").read_bytes()
        tokenizer = SentencePieceTokenizer(prefix, content)
        assert tokenizer._fast is None
        original = sentencepiece.SentencePieceProcessor(model_proto=content)
        text = "the  quick <image> fox"
        assert tokenizer.encode_batch([text])[0].tolist() == original.encode(text)
        assert tokenizer.adds_space == options.get("add_dummy_prefix", True)


@needs_library
@pytest.mark.parametrize("is_normal", [True, False])
def test_a_space_that_is_no_piece_becomes_its_three_bytes(is_normal: bool) -> None:
    encoder = BytePairEncoder(
        ["\u2581", "a"], [0.0, 0.0], [is_normal, True], list(range(1000, 1256))
    )
    space = [0] if is_normal else [1000 + byte for byte in "\u2581".encode()]
    assert encoder.encode_batch([" " * 5000 + "a"])[0].tolist() == space * 5001 + [1]


@needs_library
def test_lists_that_do_not_belong_together_are_refused() -> None:
    library = pytest.importorskip("vila_mc.kernels._text")
    for pieces, scores, kinds, byte_ids in [(2, 1, 1, 256), (1, 1, 2, 256), (1, 1, 1, 255)]:
        with pytest.raises(ValueError, match="a score and a kind for every piece, and 256 ids"):
            library.Encoder(["a"] * pieces, [0.0] * scores, [True] * kinds, [0] * byte_ids)

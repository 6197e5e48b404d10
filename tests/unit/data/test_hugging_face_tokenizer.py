"""Hugging Face tokenizers: special tokens never come from text, whichever kind it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError, SetupError
from vila_mc.flow import RawSample, RawText

tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ["<s>", "</s>", "<image>", "<|im_start|>"]
TEXTS = [f"the quick brown fox number {n} jumps; why?" for n in range(100)]


def save(folder: Path, made: Any, config: dict[str, Any] | None) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}


def byte_level() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL[:2],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    # Not special to the library, but no less so to a model; and one that is meant for text.
    made.add_tokens(SPECIAL[2:])
    made.add_tokens(["    "])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf") / "tokenizer", byte_level(), CONFIG)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def test_ids_and_names(tokenizer: Tokenizer, folder: Path) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert (
        tokenizer.vocab_size
        == 1
        + max(
            json.loads((folder / "tokenizer.json").read_text())["added_tokens"],
            key=lambda token: token["id"],
        )["id"]
    )
    assert Tokenizer(folder / "tokenizer.json").fingerprint() == tokenizer.fingerprint()
    assert tokenizer.token(0) == "<s>"
    assert tokenizer.token(tokenizer.encode("quick fox")[-1]) == " fox"
    assert not tokenizer.adds_space


@pytest.mark.parametrize("text", [*SPECIAL, "a</s><s> b", "x <|im_start|>user", "über 狐 \n\n"])
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    special = {tokenizer._backend._tokenizer.token_to_id(token) for token in SPECIAL}  # type: ignore[attr-defined]
    assert not special & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([0, *ids, 1]) == text


def test_runs_of_spaces_stay_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer._backend._tokenizer.token_to_id("    ") in tokenizer.encode("if x:\n    y")  # type: ignore[attr-defined]


def test_unigram_that_spells_a_special_token_is_refused(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *[(c, -3.0) for c in "<s>/ab"]]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, False))
    made.add_special_tokens(["<s>", "</s>"])
    found = Tokenizer(save(tmp_path / "t", made, CONFIG))
    assert found.decode(found.encode("ab")) == "a b"
    with pytest.raises(DataError, match="reads the text '<s>' as a special token"):
        found.encode("a<s>b")
    (tmp_path / "a.jsonl").write_text('{"text": "a<s>b"}\n{"text": "ab"}\n')
    source = TextSource([tmp_path / "a.jsonl"])
    from vila_mc.data.ingest.rejection import RejectionLimit

    made = preprocess(
        source, tmp_path / "set", "text", tmp_path / "t", facts={}, limit=RejectionLimit(1)
    )
    assert (made.manifest.samples, made.rejected) == (1, {"special token": 1})


def test_answer_follows_its_prompt_after_a_space(tokenizer: Tokenizer) -> None:
    pieces = (RawText("why? ASSISTANT:", False), RawText(" fox", True, ends_turn=True))
    prompt, answer = encode_sample(RawSample(pieces, 1), tokenizer, 1).pieces
    assert prompt.ids.tolist() == [0, *tokenizer.encode("why? ASSISTANT:")]
    assert answer.ids.tolist() == [*tokenizer.encode(" fox"), 1]


def test_no_bos_means_eos(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level(), {"bos_token": None, "eos_token": "</s>"})
    assert (Tokenizer(folder).bos_id, Tokenizer(folder).eos_id) == (None, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no EOS token. Put the tokenizer_config.json"),
        ({"eos_token": "<nope>"}, "has no EOS token"),
        ({"bos_token": "<nope>", "eos_token": "</s>"}, "has no BOS token"),
    ],
)
def test_missing_special_tokens(
    tmp_path: Path, config: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Tokenizer(save(tmp_path / "t", byte_level(), config))


def test_files_that_are_no_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokenizer.json"
    for content in ("{", "[]", "{}", '{"added_tokens": [{}]}'):
        file.write_text(content)
        with pytest.raises(DataError, match="is not a Hugging Face tokenizer"):
            Tokenizer(file)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(SetupError, match=r"needs the tokenizers package.*vila_mc\[hf\]"):
        Tokenizer(file)


def test_preprocessing_and_training_agree_on_it(
    tmp_path: Path, folder: Path, tokenizer: Tokenizer, write_lines: Callable[..., Path]
) -> None:
    file = write_lines("a.jsonl", [{"text": text} for text in TEXTS])
    made = preprocess(TextSource([file]), tmp_path / "set", "text", folder, facts={})
    assert made.manifest.tokenizer_sha256 == tokenizer.fingerprint()
    assert made.manifest.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(("dropout", "is_refused"), [(0.1, True), (0.0, False), (None, False)])
def test_a_text_has_the_same_tokens_each_time(
    folder: Path, tmp_path: Path, dropout: float | None, is_refused: bool
) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["dropout"] = dropout
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    if is_refused:
        with pytest.raises(DataError, match=r"dropout 0\.1, which reads a text as other tokens"):
            Tokenizer(tmp_path)
    else:
        assert len({tuple(Tokenizer(tmp_path).encode(TEXTS[0])) for _ in range(8)}) == 1

"""A chat template's own words: learnt by a new tokenizer, counted in what is written."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.unit.data.archives import write_tar
from vila_mc.commands import preprocess_data, train_tokenizer
from vila_mc.data.chat_templates import (
    BUILT_IN,
    DEFAULT_TEMPLATE,
    TemplateName,
    conversation_pieces,
    find_template,
    template_words,
)
from vila_mc.data.ingest.corpus_text import read_sentences, with_template
from vila_mc.data.ingest.rejection import Tally
from vila_mc.data.tokenizers import tokenizer as tokenizers
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.errors import ConfigError, DataError, VilaError
from vila_mc.flow import RawImage

SIZES = {"plain": 380, DEFAULT_TEMPLATE: 480}
"""Tokens that the corpus below yields, with and without the words of the template."""
FLAGS = ("the red flag", "a blue cross", "green over white", "two stars")


def conversation(number: int, *, words: int = 3) -> dict[str, object]:
    said = " ".join(f"{FLAGS[(number + n) % 4]} ({number})" for n in range(words))
    return {
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich flag is it?"},
            {"from": "gpt", "value": said},
        ],
    }


@pytest.fixture
def corpus(tmp_path: Path, make_image: Callable[..., bytes]) -> Path:
    (tmp_path / "a.png").write_bytes(make_image())
    (tmp_path / "c.json").write_text(json.dumps([conversation(n) for n in range(60)]))
    return tmp_path / "c.json"


def train(*arguments: object) -> int:
    return train_tokenizer.main([str(one) for one in arguments], "tokenizer")


def test_each_word_of_the_template_becomes_a_token(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, *options in (
        ("plain", SIZES["plain"], "--template", "plain"),
        ("default", SIZES[DEFAULT_TEMPLATE]),
    ):
        train("--input", corpus, "--output", tmp_path / f"{name}.model", "--vocab-size", *options)
    assert "from 120 texts; the words of the template vicuna_v1 take" in capsys.readouterr().out
    words = " ".join(BUILT_IN[DEFAULT_TEMPLATE].own_text().split())
    known, unknown = (Tokenizer(tmp_path / f"{name}.model") for name in ("default", "plain"))
    whole = {known.token(i).strip() for i in known.encode(words)}
    assert {*re.findall(r"\w+", words)} - {"s", "user"} <= whole
    assert len(known.encode(words)) < len(unknown.encode(words)) / 2
    spoken = "Which flag is it? the red flag"
    assert len(known.encode(spoken)) < 1.2 * len(unknown.encode(spoken))


@pytest.mark.parametrize(
    ("tokens_each", "vocabulary", "expected"),
    [
        (3, "plain", r"takes \d\d % of the tokens \(\d+ of \d+ in a sample\), for the tokenizer "),
        (3, DEFAULT_TEMPLATE, r"takes \d\d % of the tokens .*: what is said is short beside it"),
        (80, DEFAULT_TEMPLATE, None),
    ],
)
def test_preprocessing_says_what_the_template_costs(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tokens_each: int,
    vocabulary: str,
    expected: str | None,
) -> None:
    model = tmp_path / "t.model"
    train(
        "--input",
        corpus,
        "--output",
        model,
        "--vocab-size",
        SIZES[vocabulary],
        "--template",
        vocabulary,
    )
    records = [conversation(n, words=tokens_each) for n in range(60)]
    corpus.write_text(json.dumps(records))
    common = ("--input", str(corpus), "--output", str(tmp_path / "set"), "--tokenizer", str(model))
    assert preprocess_data.main(["conversations", *common], "preprocess") == 0
    said = capsys.readouterr().err
    assert said.count("\n") == (expected is not None)
    if expected:
        assert re.match(f"warning: the chat template's own text {expected}", said)


def test_no_advice_where_none_would_help(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, model = tmp_path / "short.yaml", tmp_path / "t.model"
    template.write_text('first: "USER: "\nnext: "USER: "\nclose: " ASSISTANT: "\n')
    short = ("--input", str(corpus), "--template", str(template))
    train(*short, "--output", model, "--vocab-size", 330)
    corpus.write_text(
        json.dumps([conversation(n, words=0) for n in range(60)]).replace('""', '"red"')
    )
    common = ("--output", str(tmp_path / "set"), "--tokenizer", str(model))
    assert preprocess_data.main(["conversations", *short, *common], "preprocess") == 0
    assert not capsys.readouterr().err


def test_other_kinds_have_no_template(
    tmp_path: Path,
    tokenizer_path: Path,
    write_lines: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_lines("a.jsonl", [{"text": "x"}])
    common = ("--input", str(file), "--output", str(tmp_path / "set"))
    preprocess_data.main(["text", *common, "--tokenizer", str(tokenizer_path)], "preprocess")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llama_2", "llama_3", "chatml"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_what_the_template_wrote_is_all_but_what_was_said(
    name: TemplateName, system: str | None
) -> None:
    turns = [
        Turn("user", "<image>\nWhich one?"),
        Turn("assistant", "A"),
        Turn("user", "Why that?"),
        Turn("assistant", "It is red."),
    ]
    template = BUILT_IN[name]
    pieces = conversation_pieces(template, turns, [RawImage(b"", "a")], system)
    own = "".join(template_words(template, pieces, turns, system))
    text = "".join(getattr(piece, "text", "") for piece in pieces)
    said = (
        ["A", "It is red."] if name == "plain" else ["Which one?", "A", "Why that?", "It is red."]
    )
    if system is not None and name != "plain":
        said.append(system)
    assert len(own) == len(text) - len("".join(said))
    assert not [token for token in template.special if token in own]
    if system is None:
        assert template.system in own


def test_a_template_with_special_tokens_brings_them(corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "t.model"
    train("--input", corpus, "--output", model, "--vocab-size", 420, "--template", "chatml")
    made = Tokenizer(model)
    assert [made.special_id(token) for token in BUILT_IN["chatml"].special] == [3, 4]
    assert min(made.encode("<|im_start|>")) > 4  # no text spells it
    common = ("--input", str(corpus), "--output", str(tmp_path / "set"), "--tokenizer", str(model))
    assert preprocess_data.main(["conversations", *common, "--template", "chatml"], "p") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "t.model exists already, and .* Choose another output, .* See --overwrite"),
        (("--overwrite",), None),
        (
            ("--overwrite", "--input", "{}/own.txt", "--output", "{}/./own.txt"),
            "--output is .*own.txt, which is also an input",
        ),
        (("--output", "{}/new.model", "--template", "tokenizer"), "--template is tokenizer, which"),
        (("--output", "{}/new.model", "--template", "no"), "there is no template no"),
        (("--output", "{}/new.model", "--input", "{}/empty"), "holds no file that ends in .txt"),
        (("--output", "{}/new.model", "--keys", "alt"), "no text to train on.* See --input"),
    ],
)
def test_refusals(
    corpus: Path, tmp_path: Path, options: Sequence[str], message: str | None
) -> None:
    (tmp_path / "t.model").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "own.txt").write_text("a text of one's own")
    given = {"--input": str(corpus), "--output": str(tmp_path / "t.model"), "--vocab-size": "420"}
    words = [word.format(tmp_path) for word in options]
    switches = [word for word in words if word == "--overwrite"]
    named = [word for word in words if word not in switches]
    given |= dict(zip(named[::2], named[1::2], strict=True))
    arguments = [*switches, *(word for pair in given.items() for word in pair)]
    if message is None:
        assert train(*arguments) == 0
        assert (tmp_path / "t.model").read_bytes() != b"mine"
        return
    with pytest.raises(VilaError, match=message):
        train(*arguments)
    assert (tmp_path / "t.model").read_bytes() == b"mine"
    assert not (tmp_path / "new.model").exists()


def test_texts_of_every_kind_of_file(
    tmp_path: Path, write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    table = arrow.table({"image": [b"x", b"y"], "caption": ["in rows", None], "url": ["no", "no"]})
    parquet.write_table(table, folder / "a.parquet")
    shard = {"1.jpg": b"x", "1.txt": b"in an archive", "1.json": b'{"caption": "no"}'}
    write_tar(folder / "b.tar", shard | {"2.jpg": b"x", "2.json": b'{"caption": "beside it"}'})
    (folder / "below" / "c.txt").write_bytes(b"\xef\xbb\xbfin a file\n")
    (folder / "below" / "picture.png").write_bytes(b"not read")
    write_lines("in/d.jsonl", [{"alt": "no"}])
    model = tmp_path / "t.model"
    train("--input", folder, "--output", model, "--vocab-size", 330)
    printed = capsys.readouterr()
    assert "from 4 texts" in printed.out
    assert printed.err == (
        "warning: 1 of 4 files hold no text under text, text_list, caption, value, question, "
        f"answer, content: {folder}/d.jsonl. See --keys.\n"
    )
    files = [folder / "a.parquet", folder / "b.tar", folder / "below" / "c.txt"]
    assert [text.strip() for text in read_sentences(files)] == [
        *("in rows", "in an archive", "beside it", "in a file"),
    ]
    assert list(read_sentences([folder / "d.jsonl"], ("alt",))) == ["no"]


def test_markers_of_images_are_no_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(conversation(1)) + "\n")
    assert next(read_sentences([tmp_path / "a.jsonl"])) == " \nWhich flag is it?"


def test_a_damaged_archive_is_no_corpus(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"1.txt": b"one" * 400, "2.txt": b"two"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2200])
    with pytest.raises(DataError, match=r"a\.tar: .*cut off"):
        list(read_sentences([tmp_path / "a.tar"]))


def test_the_template_is_read_often_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vila_mc.data.ingest.corpus_text._TEMPLATE_REPEATS", 2)
    template = BUILT_IN["vicuna_v1"]
    own = template.own_text()
    assert list(with_template("abc", template)) == ["a", own, "b", own, "c"]
    assert "{" not in own


def test_a_run_that_goes_on_remembers_the_template() -> None:
    tally = Tally(template_tokens=7, template_characters=20)
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


def test_letters_of_a_small_corpus_are_kept(tmp_path: Path) -> None:
    sentences = with_template(["Five fins"] + ["one two three"] * 900, BUILT_IN["vicuna_v1"])
    tokenizers.train_tokenizer(sentences, tmp_path / "t.model", 360)
    made = Tokenizer(tmp_path / "t.model")
    assert not [i for i in made.encode("Five") if made.token(i).startswith("<0x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder, pipe or device, not a file. Give plain, "),
        ("a: " + "x" * 2**20, "is larger than 1 MiB. Give plain, "),
        ("[" * 5000, "is not YAML"),
        ("first: 2026-99-99", "is not YAML"),
        ("first: a", "is not a template. Give plain, "),
    ],
)
def test_what_is_no_template_is_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        find_template(str(file), None)
    assert "\n" not in str(caught.value)

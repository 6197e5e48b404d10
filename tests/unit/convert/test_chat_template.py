"""An export chats with the template that its model was trained with, token by token."""

import copy
import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.tiny import tiny_run
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.checkpoint.manifest import DatasetRecord, Manifest
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.checkpoint.trained_template import (
    DEFAULT,
    is_same,
    trained_template,
)
from vila_mc.convert.chat_template import jinja_of, published_template, template_of_jinja
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.tokenizer_files import added_token, load_convertible, write_tokenizer
from vila_mc.data.chat_templates import BUILT_IN, Template, conversation_pieces, prompt
from vila_mc.data.indexed.dataset_manifest import DatasetManifest
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.flow import RawImage, RawSample, TextPiece

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
OWN = Template(
    first='<|im_start|>who "is" %} {{ this }}: {system}{eos}\n',
    next="{bos}and:",
    close="\nA \u00e9:",
    system="Tiny {eos} 'quoted'",
    end=".<|eot_id|>",
    after=" next",
    special=("<|im_start|>", "<|eot_id|>"),
)
TURNS = (
    Turn("user", "<image>\nWhat is <|im_end|> this?"),
    Turn("assistant", "Two dogs </s> run."),
    Turn("user", "And here: <image> or <image>"),
    Turn("assistant", "There are two  spaces."),
    Turn("user", "<image><image> Which is last?"),
    Turn("assistant", "The last."),
)
MODEL = tiny_model("linear", vocab_size=VOCABULARY + len(SPECIAL))
WORKING = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
NAMED = {**BUILT_IN, "own": OWN}
SET = dict(
    format_version=2,
    kind="multimodal",
    tokenizer_sha256="",
    vocab_size=9,
    samples=5,
    tokens=9,
    images=0,
    bin_bytes=9,
    idx_sha256="",
    tool_version="",
)


@pytest.fixture(scope="module")
def folder(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Hugging Face with the tokens that templates need."""
    folder = tmp_path_factory.mktemp("tokenizer")
    more = [added_token(VOCABULARY + n, text) for n, text in enumerate(SPECIAL)]
    write_tokenizer(load_convertible(tokenizer_path, VOCABULARY), folder, 256, more=more)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The processor of an export with each template."""
    from transformers import AutoProcessor

    state, result = lazily(build(MODEL).canonical()), {}
    for name, template in NAMED.items():
        output = tmp_path_factory.mktemp("export") / name
        write_export(state, MODEL, folder, output, template=template)
        result[name] = AutoProcessor.from_pretrained(output, trust_remote_code=True)
    return result


@pytest.fixture
def image(photo: bytes) -> RawImage:
    return RawImage(photo, "photo")


def _trained_ids(pieces: tuple[Any, ...], folder: Path) -> list[int]:
    ids: list[int] = []
    for piece in encode_sample(RawSample(tuple(pieces), 1), Tokenizer(folder), 10**6).pieces:
        is_text = isinstance(piece, TextPiece)
        placeholders = [MODEL.language.vocab_size] * MODEL.visual_tokens()
        ids += piece.ids.tolist() if is_text else placeholders
    return ids


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    picture = Image.new("RGB", (30, 20))
    messages = []
    for turn in turns:
        content = []
        for index, chunk in enumerate(turn.text.split("<image>")):
            content += [{"type": "image", "image": picture}] if index else []
            content += [{"type": "text", "text": chunk}]
        messages.append({"role": turn.role, "content": content})
    return messages


def _pickled(chat: Any) -> Any:
    return pickle.loads(pickle.dumps(chat))


def _ids(processor: Any, messages: list[dict[str, Any]], **options: bool) -> list[int]:
    given = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return given["input_ids"][0]


@pytest.mark.parametrize("name", NAMED)
def test_a_conversation_reads_as_in_training(
    name: str, exported: dict[str, Any], folder: Path, image: RawImage
) -> None:
    pieces = conversation_pieces(NAMED[name], TURNS, [image] * 5)
    assert _ids(exported[name], _messages(TURNS)) == _trained_ids(pieces, folder)


@pytest.mark.parametrize("copied", [lambda chat: chat, copy.deepcopy, _pickled])
@pytest.mark.parametrize("name", NAMED)
def test_a_rendered_conversation_keeps_the_tokens_of_its_template(
    name: str, copied: Callable[[Any], Any], exported: dict[str, Any]
) -> None:
    """As most code for transformers does it: a text first, which the processor gets later."""
    processor, picture = exported[name], Image.new("RGB", (30, 20))
    chats = [_messages(TURNS[:3]), _messages(TURNS[:1])]
    how = dict(add_generation_prompt=True)
    texts = [processor.apply_chat_template(chat, **how) for chat in chats]
    assert texts == processor.apply_chat_template(chats, **how)
    assert all("token-" not in text and "piece-end" not in text for text in texts)
    given = processor(text=[copied(text) for text in texts], images=[[picture] * 3, [picture]])
    assert given["input_ids"] == [_ids(processor, chat, **how) for chat in chats]


def test_a_text_made_from_a_rendered_conversation_is_plain(
    exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user wrote into it may look like a token of the template, so none is read."""
    processor = exported["chatml"]
    warned: list[str] = []
    logger = type(processor).__call__.__globals__["logger"]
    monkeypatch.setattr(logger, "warning_once", warned.append)
    text = processor.apply_chat_template([{"role": "user", "content": "Who?"}])
    start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in processor(text=text)["input_ids"][0]
    assert not warned
    assert start not in processor(text=text + " ")["input_ids"][0]
    assert ["'<|im_start|>', '<|im_end|>'" in words for words in warned] == [True]


def test_another_template_is_rendered_as_it_is(exported: dict[str, Any]) -> None:
    processor, template = exported["chatml"], "{{ messages[0]['content'] }}<|im_end|>"
    chat = [{"role": "user", "content": "Who?"}]
    text = processor.apply_chat_template(chat, chat_template=template)
    assert (text, type(text)) == ("Who?<|im_end|>", str)
    ids = processor.apply_chat_template(chat, chat_template=template, tokenize=True)
    assert ids == processor(text=text)["input_ids"]


@pytest.mark.parametrize("name", NAMED)
def test_a_question_reads_as_in_training(
    name: str, exported: dict[str, Any], folder: Path, image: RawImage
) -> None:
    pieces = prompt(NAMED[name], "<image>\nWhat is this?", [image])
    ids = _ids(
        exported[name],
        _messages([Turn("user", "<image>\nWhat is this?")]),
        add_generation_prompt=True,
    )
    assert ids == _trained_ids(pieces, folder)


def test_a_system_text_takes_the_place_of_the_template_s(
    exported: dict[str, Any], folder: Path, image: RawImage
) -> None:
    pieces = conversation_pieces(BUILT_IN["chatml"], TURNS, [image] * 5, "Be  brief. ")
    messages = [{"role": "system", "content": "Be  brief. "}, *_messages(TURNS)]
    assert _ids(exported["chatml"], messages) == _trained_ids(pieces, folder)


def test_answers_end_where_training_ended_them(folder: Path, tmp_path: Path) -> None:
    state = lazily(build(MODEL).canonical())
    newline = Tokenizer(folder).encode("a\n")[-1]
    two_letters = Template(first="", next="", close="", end="zq")
    tokenizer_s = TokenizerTemplate(WORKING, (), ())
    for number, (template, ends) in enumerate(
        (
            (BUILT_IN["llama_3"], [2, VOCABULARY + 4]),
            (BUILT_IN["vicuna_v1"], 2),
            (BUILT_IN["plain"], [2, newline]),
            (two_letters, 2),
            (tokenizer_s, [2, VOCABULARY + 1]),
        )
    ):
        output = tmp_path / str(number)
        write_export(state, MODEL, folder, output, template=template)
        written = json.loads((output / "generation_config.json").read_text())
        assert written["eos_token_id"] == ends


@pytest.mark.parametrize("format", ["hf-vila", "hf-llava", "vila"])
def test_a_template_in_jinja_is_written_where_it_can_be_applied(
    format: str, folder: Path, tmp_path: Path
) -> None:
    state, own = lazily(build(MODEL).canonical()), TokenizerTemplate("{{ 'mine' }}", (), ())
    write_export(state, MODEL, folder, tmp_path / "out", format=format, template=own)
    holding = [
        path.name
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and b"'mine'" in path.read_bytes()
    ]
    expected = {"hf-llava": ["chat_template.jinja"], "vila": ["tokenizer_config.json"]}
    assert holding == expected.get(format, [])


def _padded_state() -> dict[str, torch.Tensor]:
    rows = MODEL.language.padded_vocab()
    return {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, rows - len(tensor)))
        if "word_embeddings" in name or "output_layer" in name
        else tensor
        for name, tensor in build(MODEL).canonical().items()
    }


def test_the_template_goes_from_dataset_to_checkpoint_to_export(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(train={"output": str(tmp_path / "run")}, data={"tokenizer": str(folder)})
    config = dataclasses.replace(config, model=MODEL)
    checkpoint = write_weights_checkpoint(config, lazily(_padded_state()), "the test")
    manifest = Manifest.read(checkpoint)
    records = [OWN.describe(), "chatml", "chatml"]
    made_from = [dict(SET, source={"template": template}) for template in records]
    datasets = tuple(DatasetRecord.of(DatasetManifest(**values)) for values in made_from)
    dataclasses.replace(manifest, datasets=datasets).write(checkpoint)
    assert Manifest.read(checkpoint).datasets == datasets
    export_checkpoint(checkpoint, tmp_path / "out")
    written = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert written == jinja_of(BUILT_IN["chatml"])
    assert "several chat templates" in capsys.readouterr().out


def test_the_jinja_of_a_template_is_one_text(folder: Path) -> None:
    for template in NAMED.values():
        assert jinja_of(template).count("{%- set template = ") == 1


@pytest.mark.parametrize("name", NAMED)
def test_a_template_comes_back_from_its_jinja(name: str) -> None:
    found = template_of_jinja(jinja_of(NAMED[name]))
    assert found is not None
    assert is_same(found, NAMED[name])


def test_other_jinja_is_none_of_ours() -> None:
    ours = jinja_of(OWN)
    line, _, rest = ours.partition("\n")
    for text in (
        ours + " ",
        rest,
        "{{ messages }}",
        line,
        f"{{%- set template = {{}} -%}}\n{rest}",
        f"{{%- set template = {{x}} -%}}\n{rest}",
        ours.replace('["token", "<|eot_id|>"]', '["token", 3]'),
        ours.replace('["token", "<|eot_id|>"]', "3"),
    ):
        assert template_of_jinja(text) is None
    assert not is_same(OWN, BUILT_IN["chatml"])
    assert not is_same(OWN, TokenizerTemplate("{{ 1 }}", (), ()))


IN_PARTS = "{% for m in messages %}{% for part in m['content'] if part['type'] == 'text' %}"
IN_PARTS += "{{ part['text'] }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("jinja", "expected"),
    [
        (None, None),
        (jinja_of(OWN), OWN),
        (jinja_of(BUILT_IN["chatml"]), BUILT_IN["chatml"]),
        (WORKING, TokenizerTemplate(WORKING, (), ())),
        (IN_PARTS, None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_template_of_a_published_directory(
    jinja: str | None, expected: Template | TokenizerTemplate | None, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "published")
    if jinja is not None:
        (tmp_path / "published" / "chat_template.jinja").write_text(jinja)
    found = published_template(tmp_path / "published", Tokenizer(tmp_path / "published"))
    assert (found is None) == (expected is None)
    assert found is None or expected is None or is_same(found, expected)


def _checkpoint(folder: Path, output: Path) -> Path:
    """Of a model that no dataset is recorded of."""
    config = tiny_run(train={"output": str(output)}, data={"tokenizer": str(folder)})
    config = dataclasses.replace(config, model=MODEL)
    return write_weights_checkpoint(config, lazily(_padded_state()), "the test")


def test_a_template_survives_export_and_import(folder: Path, tmp_path: Path) -> None:
    checkpoint = _checkpoint(folder, tmp_path / "run")
    records = (DatasetRecord(9, "sha", OWN.describe()),)
    dataclasses.replace(Manifest.read(checkpoint), datasets=records).write(checkpoint)
    for format in ("hf-vila", "hf-llava", "vila"):
        export_checkpoint(checkpoint, tmp_path / format, format)
        again = import_checkpoint(read_whole(tmp_path / format), tmp_path / f"{format} again")
        manifest = Manifest.read(again)
        assert is_same(trained_template(manifest.datasets, manifest.template)[0], OWN)
        export_checkpoint(again, tmp_path / "last", tokenizer=folder)
        assert is_same(published_template(tmp_path / "last", None), OWN)


def _tokenizer_dir(export: Path) -> Path:
    return export / "llm" if (export / "llm").is_dir() else export


@pytest.mark.parametrize("format", ["hf-vila", "hf-llava", "vila"])
def test_an_export_of_an_unknown_template_says_so(
    format: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_checkpoint(_checkpoint(folder, tmp_path / "run"), tmp_path / "out", format)
    said = capsys.readouterr().out
    assert "it is not recorded which chat template the model was trained with" in said
    assert published_template(_tokenizer_dir(tmp_path / "out"), None) == DEFAULT

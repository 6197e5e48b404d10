"""Tokenizers that a stranger made: refused in one line, or read without harm."""

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.foreign_fuzz import DOORS, make_all, try_door
from vila_mc.data.tokenizers import tokenizer as tokenizer_module
from vila_mc.data.tokenizers.sentencepiece_model import PieceType, parse, read_sentencepiece
from vila_mc.data.tokenizers.sentencepiece_tokenizer import SPACE
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError, DataError

tokenizers = pytest.importorskip("tokenizers")

PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": ""}
OUT_OF_BOUNDS = base64.b64encode(b"\x08\0\0\0" + b"\xff" * 8 + b"x").decode()
TOKEN = {
    **{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False},
    **{"normalized": False, "special": True},
}
JSON_FILES: dict[str, tuple[Any, str]] = {
    "panics when it is read": ({"normalizer": PRECOMPILED}, "charsmap"),
    "panics when it encodes": (
        {"normalizer": PRECOMPILED | {"precompiled_charsmap": OUT_OF_BOUNDS}},
        "out of bounds",
    ),
    "divides by zero": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "non-zero"),
    "panics when it decodes": (
        {"decoder": {"type": "Strip", "content": "a", "start": 99, "stop": 99}},
        "out of bounds",
    ),
    "unknown token unknown": (
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [], "byte_fallback": False}},
        "unk_id",
    ),
    "tokens are a text": ({"added_tokens": "<s>"}, "it must be a list"),
    "token without an id": ({"added_tokens": [{"content": "<s>"}]}, "0.id is missing"),
    "id is a text": ({"added_tokens": [TOKEN | {"id": "0"}]}, "0.id must be a whole number"),
    "id of no dataset": ({"added_tokens": [TOKEN | {"id": 2**31}]}, "0.id must be less than"),
    "content is a list": ({"added_tokens": [TOKEN | {"content": []}]}, "0.content must be a text"),
    "id of no vocabulary": (
        {"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}},
        "it has the token id 2147483648",
    ),
    "a list": ([], "it must be an object"),
    "nested": (b"[" * 100_000, "it is not JSON: "),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_no_tokenizer(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, message = JSON_FILES[name]
    sound = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<s>": 1}, []))
    if isinstance(changes, dict):
        changes = json.loads(sound.to_str()) | changes
    content = changes if isinstance(changes, bytes) else json.dumps(changes).encode()
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))
    with pytest.raises(DataError, match=message) as error:
        Tokenizer(tmp_path).decode([0, 0])
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", b'{"eos_token": ["a"]}', "eos_token is no text"),
        ("tokenizer_config.json", b'{"eos_token": "a", "bos_token": 3}', "bos_token is no text"),
        ("tokenizer_config.json", b"[" * 100_000, "it is not JSON"),
        ("tokenizer_config.json", b"[1]", "it must be an object"),
        ("special_tokens_map.json", b'{"bos_token": {"content": 1}}', "bos_token is no text"),
        ("special_tokens_map.json", b"\xff", "it is not JSON"),
        ("special_tokens_map.json", b" " * (1 << 24) + b"{}", "is larger than 16 MiB"),
    ],
)
def test_a_file_beside_it(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    sound = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<s>": 1}, []))
    sound.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file} .*{message}"):
        Tokenizer(tmp_path)


def test_files_without_end(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "tokenizer.model")
    with pytest.raises(DataError, match="is a folder, pipe or device"):
        Tokenizer(tmp_path / "tokenizer.model")
    monkeypatch.setattr(tokenizer_module, "_LARGEST_BYTES", 1 << 10)
    with pytest.raises(DataError, match="is larger than 0 MiB"):
        Tokenizer(tokenizer_path)


def with_piece(content: bytes, text: str, type: int, score: float = -1.0) -> bytes:
    """The model with another type and score of a piece, in protobuf's bytes."""
    spelled = text.encode()
    head = b"\x0a" + bytes([len(spelled)]) + spelled + b"\x15"
    at = content.index(head)
    size = content[at - 1]
    made = head + struct.pack("<f", score) + b"\x18" + bytes([type])
    return content[: at - 1] + bytes([len(made)]) + made + content[at + size :]


def odd_pieces() -> Iterator[tuple[str, int, float]]:
    yield SPACE, PieceType.CONTROL, 0.0
    yield SPACE, PieceType.USER_DEFINED, 0.0
    yield SPACE, PieceType.UNUSED, 0.0
    yield SPACE, PieceType.BYTE, 0.0
    yield "e", PieceType.NORMAL, float("nan")
    yield "e", PieceType.NORMAL, float("inf")
    yield "<0x20>", PieceType.NORMAL, 0.0
    yield "<0x20>", PieceType.CONTROL, 0.0


@pytest.mark.parametrize(("text", "type", "score"), odd_pieces())
def test_pieces_of_other_kinds_do_no_harm(
    tmp_path: Path, tokenizer_path: Path, text: str, type: int, score: float
) -> None:
    """The native encoder has room for one token per byte, and compares scores."""
    content = with_piece(tokenizer_path.read_bytes(), text, type, score)
    assert next(piece for piece in parse(content).pieces if piece.text == text).type == type
    (tmp_path / "odd.model").write_bytes(content)
    try:
        found = Tokenizer(tmp_path / "odd.model")
    except DataError:
        return
    assert max(found.encode(" " * 5000 + "\x7f" * 100 + "e" * 2000)) < found.vocab_size
    assert found._backend._fast is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff\xff\xff\xff\x7f", b"\xff" * 1000, b"\x0a\x02\x18\x01", b"\x0a\x00"]
)
def test_bytes_that_are_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.model").write_bytes(content)
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer(tmp_path / "odd.model")
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        read_sentencepiece(tmp_path / "odd.model")


@pytest.mark.parametrize("name", DOORS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """A few of the 20,000 that benchmarks/fuzz_data.py tries."""
    make_all(tmp_path)
    found = try_door(DOORS[name], tmp_path, count=40, seed=1)
    assert found.keys() <= {"read", "refused"}

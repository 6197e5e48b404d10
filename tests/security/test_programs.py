"""What strangers' files have libraries do: templates and tokenizers end, in little memory."""

import base64
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from vila_mc.data import tokenizer_template
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.text_growth import require_little_growth
from vila_mc.data.turns import Turn
from vila_mc.errors import DataError
from vila_mc.train.handshake import StrangerError, receive

ROOT = Path(__file__).resolve().parents[2]
LOOP = "{% for i in range(99999) %}"
TEMPLATES = {
    "loops": f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}",
    "a long text": "{% set x = 'a' * 9000000000 %}{{ x|length }}",
    "a text that doubles": "{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x|length }}",
    "a way out": "{{ cycler.__init__.__globals__.os.system('exit 3') }}",
    "another": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a format": "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(raise_exception) }}",
    "a file": "{% include '/etc/passwd' %}",
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_template, "_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(DataError, match="chat template refuses"):
        TokenizerTemplate(TEMPLATES[name], (), ()).prompt([Turn("user", "hello")], ())
    assert time.monotonic() - started < 30


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _table(size: int, *texts: bytes) -> dict[str, str]:
    table = struct.pack("<I", size) + bytes(16) + b"\0".join(texts)
    text = base64.b64encode(table).decode()
    return {"type": "Precompiled", "precompiled_charsmap": text}


def _nested(step: Any, depth: int) -> Any:
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


STEPS = {
    "texts": [_replace({"String": "a"}, "aaaaaaaaaa")] * 12,
    "what matches nothing": [_replace({"Regex": ""}, "aa")] * 12,
    "what is put in front": [{"type": "Prepend", "prepend": "a" * 1000}],
    "bytes": [{"type": "ByteLevel"}] * 40,
    "a table": [_table(16, b"x" * 1000)],
    "a table that is cut": [_table(2**32 - 1, b"x")],
    "many": [{"type": "Lowercase"}] * 1000,
    "nested": [_nested(_replace({"String": "a"}, "a" * 300), 50_000)],
}


@pytest.mark.parametrize("section", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("name", STEPS)
def test_a_tokenizer_does_not_multiply_texts(name: str, section: str) -> None:
    parts = {"pre_tokenizer": "pretokenizers"}.get(section, f"{section}s")
    with pytest.raises(ValueError, match=r"without bounds|cut short"):
        require_little_growth({section: {"type": "Sequence", parts: STEPS[name]}})


def test_tokenizers_in_use_are_read() -> None:
    llama = [{"type": "Prepend", "prepend": "\u2581"}, _replace({"String": " "}, "\u2581")]
    t5 = [_table(16, b"x" * 33), _replace({"Regex": " {2,}"}, "\u2581")]
    for steps in (llama, t5):
        require_little_growth({"normalizer": {"type": "Sequence", "normalizers": steps}})
    require_little_growth({"pre_tokenizer": {"type": "ByteLevel"}, "decoder": None})


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"code": "\\ud800"}',
        b'{"code": 1}',
        b'{"nonce": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"nonce": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"nonce": ' + b"9" * 100_000 + b"}",
        b"\xff",
        b"x" * (3 << 20),
    ],
    ids=lambda line: str(line[:20]),
)
def test_what_a_stranger_says_to_a_launcher(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        try:
            theirs.sendall(line + b"\n")
        except BlockingIOError:
            theirs.close()
        with pytest.raises((StrangerError, OSError)):
            receive(ours, time.monotonic() + 5)

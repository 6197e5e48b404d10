"""How much longer a foreign tokenizer.json may make a text, told before the library reads it.

Its steps follow one another, so that forty which double a text ask for all memory that there is;
and the library ends the process where it gets none.
"""

import base64
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

_MOST_GROWTH = 256
"""Times; normalisation of Unicode alone makes 18 characters of one."""
_MOST_STEPS = 100
_SECTIONS = ("normalizer", "pre_tokenizer", "decoder")
_PARTS = ("normalizers", "pretokenizers", "decoders")


def require_little_growth(tokenizer: Mapping[str, Any]) -> None:
    """Refuse a tokenizer.json whose steps multiply.

    Raises:
        ValueError: what it does to a text.
        LookupError, TypeError, AttributeError: it is none.
    """
    for section in _SECTIONS:
        growth = 1
        for number, step in enumerate(_steps(tokenizer.get(section))):
            growth *= _growth(step)
            if growth > _MOST_GROWTH or number >= _MOST_STEPS:
                raise ValueError(f"its {section} could make a text grow without bounds")


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps within, in a loop: a file can nest them deeper than Python goes."""
    waiting = [step]
    while waiting:
        step = waiting.pop()
        if step is None:
            continue
        parts = [part for name in _PARTS for part in step.get(name) or []]
        waiting += parts
        if not parts:
            yield step


def _growth(step: Mapping[str, Any]) -> int:
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step["pattern"], len(step["content"].encode())
        if "String" in pattern:
            return max(1, math.ceil(content / max(1, len(pattern["String"].encode()))))
        return 1 + content  # a pattern may match nothing, between any two characters
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "ByteLevel":
        return 2
    if kind == "Precompiled":
        return _growth_of_table(base64.b64decode(step["precompiled_charsmap"]))
    return 1


def _growth_of_table(table: bytes) -> int:
    """SentencePiece's: the size of a trie, the trie, and the texts that it leads to."""
    size = struct.unpack_from("<I", table)[0] if len(table) >= 4 else 0
    if not 0 < size <= len(table) - 4:
        raise ValueError("its precompiled_charsmap is cut short")
    return max(1, *map(len, table[4 + size :].split(b"\0")))

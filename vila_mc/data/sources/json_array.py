"""Elements of a JSON array in a file, cut out one after the other without being decoded.

Whoever turns elements into samples decodes them, so that one that is no JSON, or nested too deeply,
spoils nothing but itself, and what is decoded never crosses to another process.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

_READ_SIZE = 1 << 20
_MOST_BRACKETS = 1_000_000
"""In one element, besides those that hold no others: every one of them is looked at."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+"
_WITHIN = re.compile(
    rb'(?:[^"\[\]{}]++|' + _STRING + rb"|\[" + _FLAT + rb"\]|\{" + _FLAT + rb"\})*+", re.DOTALL
)
"""From within an element up to the next bracket that holds others, or a string that does not end
yet."""
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)
"""The same outside of all brackets, up to the next comma, too."""
_BLANK = re.compile(rb"[ \t\r\n]*+")


def read_elements(raw: BinaryIO, longest: int) -> Iterator[tuple[bytes | None, int]]:
    """Each element of an array, or of several arrays one after the other, as it stands.

    Args:
        raw: the file, at its start.
        longest: bytes of the longest element.

    Yields:
        (element, or None for one that is longer; bytes of the file read so far).

    Raises:
        EOFError: there is no array, it is cut off, or something else follows it; the message says
            how many bytes are not read.
    """
    return _Scanner(raw, longest).elements()


class _Scanner:
    """A window on the file. ``_start`` is where an element starts in it, ``_at`` what is seen."""

    def __init__(self, raw: BinaryIO, longest: int) -> None:
        self._raw = raw
        self._longest = longest
        self._text = b""
        self._before = 0  # bytes of the file before the window
        self._start = self._at = 0
        self._is_too_long = False
        self._number = 0

    def elements(self) -> Iterator[tuple[bytes | None, int]]:
        self._more()
        self._text = self._text.removeprefix(b"\xef\xbb\xbf")
        if self._next_after_blanks() != b"[":
            raise EOFError("it does not hold a JSON array; rename it to .jsonl if it is lines")
        while (opening := self._next_after_blanks()) == b"[":
            self._start = self._at = self._at + 1
            yield from self._array()
        if opening:
            raise EOFError(
                f"the {self._left():,} bytes after the end of its array, from byte "
                f"{self._before + self._at:,} on, are not read"
            )

    def _array(self) -> Iterator[tuple[bytes | None, int]]:
        while True:
            closing = self._to_end_of_element()
            element = None if self._is_too_long else self._text[self._start : self._at].strip()
            if element != b"" or closing == b",":
                self._number += 1
                yield element, self._before + self._at
            self._start = self._at = self._at + 1
            self._is_too_long = False
            if closing == b"]":
                return

    def _to_end_of_element(self) -> bytes:
        """Move to the comma or bracket that ends the element at hand, and return it."""
        depth = brackets = 0
        while True:
            pattern = _WITHIN if depth else _BETWEEN
            match = pattern.match(self._text, self._at)
            assert match is not None  # it may be empty
            self._at = match.end()
            found = self._text[self._at : self._at + 1]
            if not found or found == b'"':
                is_stuck = found == b'"' and len(self._text) - self._at > self._longest
                if is_stuck or not self._more():
                    raise EOFError(
                        f"it is cut off or no JSON after element {self._number} of its array. The "
                        f"last {self._left():,} bytes are lost"
                    )
            elif not depth and found in b",]":
                return found
            else:
                depth = max(0, depth + (1 if found in b"[{" else -1))
                self._at += 1
                brackets += 1
                if brackets > _MOST_BRACKETS:
                    raise EOFError(
                        f"element {self._number + 1} of its array has more than "
                        f"{_MOST_BRACKETS:,} brackets. The last {self._left():,} bytes are lost"
                    )

    def _next_after_blanks(self) -> bytes:
        """The first byte that is no white space, none at the end of the file."""
        while True:
            match = _BLANK.match(self._text, self._at)
            assert match is not None
            self._start = self._at = match.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        if self._at - self._start > self._longest:
            self._is_too_long = True
            self._start = self._at
        kept = self._text[self._start :]
        more = self._raw.read(max(_READ_SIZE, len(kept)))
        self._before += self._start
        self._text = kept + more
        self._at -= self._start
        self._start = 0
        return bool(more)

    def _left(self) -> int:
        return self._raw.seek(0, 2) - self._before - self._start

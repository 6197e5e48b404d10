"""Files that others wrote: bounded, and what is wrong with them in one line."""

import os
from pathlib import Path
from typing import TypedDict

import pytest
from pydantic import TypeAdapter

from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign


class Shape(TypedDict):
    number: int


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: Invalid JSON"),
        (b"[" * 100_000, "is damaged: Invalid JSON"),
        (b"\xff", "is damaged: Invalid JSON"),
        (b"[]", "is damaged: Input should be an object"),
        (b'{"number": "x"}', "is damaged: number: Input should be a valid integer"),
        (b'{"number": ' + b"9" * 5000 + b"}", "is damaged: "),
        (b"{}", "is damaged: number: Field required"),
    ],
)
def test_what_is_wrong_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(ForeignFileError) as error:
        parse_foreign(content, TypeAdapter(Shape))
    assert str(error.value).startswith(message)
    assert str(error.value).isprintable()


def test_names_of_places_are_shown_without_what_a_terminal_obeys() -> None:
    with pytest.raises(ForeignFileError) as error:
        parse_foreign(b'{"\\u001b[2J\\n": "x"}', TypeAdapter(dict[str, int]))
    assert str(error.value).startswith("is damaged: ?[2J?: Input should be")


def test_what_has_no_end_or_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (1 << 20))
    assert len(read_foreign(tmp_path / "file", 1 << 20)) == 1 << 20
    (tmp_path / "file").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ForeignFileError, match="is larger than 1 MiB"):
        read_foreign(tmp_path / "file", 1 << 20)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ForeignFileError, match="is a folder, pipe or device"):
            read_foreign(tmp_path / name, 1)

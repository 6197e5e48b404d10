"""Files that others wrote: bounded, and what is wrong with them in one line."""

import os
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vila_mc.foreign_files import ForeignFileError, fault_of, parse_foreign, read_foreign


class Shape(TypedDict):
    number: int


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: it is not JSON: "),
        (b"[" * 100_000, "is damaged: it is not JSON: "),
        (b"\xff", "is damaged: it is not JSON: "),
        (b"[]", "is damaged: it must be an object"),
        (b'{"number": "x"}', "is damaged: number must be a whole number"),
        (b'{"number": ' + b"9" * 5000 + b"}", "is damaged: "),
        (b"{}", "is damaged: number is missing"),
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
    assert str(error.value).startswith("is damaged: ?[2J? must be a whole number")


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


@dataclass(kw_only=True)
class _Part:
    path: Path


@dataclass(kw_only=True, config={"extra": "forbid"})
class _Everything:
    text: str = ""
    size: Annotated[int, Field(gt=0, le=9)] = 1
    count: Annotated[int, Field(ge=0, lt=9, multiple_of=2)] = 2
    share: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    is_on: bool = False
    kind: Literal["a", "b"] = "a"
    nothing: None = None
    parts: tuple[_Part, ...] = ()
    two: Annotated[list[int], Field(min_length=1, max_length=2)] = field(
        default_factory=lambda: [1]
    )
    by_name: dict[str, int] = field(default_factory=dict)
    needed: int


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({}, "needed is missing"),
    ({"needed": 1, "more": 1}, "more is unknown"),
    ({"text": 1}, "text must be a text"),
    ({"text": [1]}, "text must be a text"),
    ({"size": "x"}, "size must be a whole number"),
    ({"size": 1.5}, "size must be a whole number"),
    ({"size": []}, "size must be a whole number"),
    ({"size": "9" * 5000}, "size must be a smaller number"),
    ({"size": 0}, "size must be greater than 0"),
    ({"size": 10}, "size must be at most 9"),
    ({"count": -2}, "count must be at least 0"),
    ({"count": 10}, "count must be less than 9"),
    ({"count": 3}, "count must be a multiple of 2"),
    ({"share": "x"}, "share must be a number"),
    ({"share": []}, "share must be a number"),
    ({"share": float("nan")}, "share must be a finite number"),
    ({"is_on": "perhaps"}, "is_on must be true or false"),
    ({"is_on": []}, "is_on must be true or false"),
    ({"kind": "c"}, "kind must be 'a' or 'b'"),
    ({"nothing": 1}, "nothing must be left out"),
    ({"parts": "x"}, "parts must be a list"),
    ({"parts": ["x"]}, "parts.0 must be an object"),
    ({"parts": [{}]}, "parts.0.path is missing"),
    ({"parts": [{"path": 1}]}, "parts.0.path must be a text"),
    ({"two": []}, "two must have at least 1 entries"),
    ({"two": [1, 2, 3]}, "two must have at most 2 entries"),
    ({"by_name": []}, "by_name must be an object"),
    ({"by_name": {"a": "x"}}, "by_name.a must be a whole number"),
]
JARGON = re.compile(
    r"(?i)input|valid|instance|dict|parse|field|argument|pydantic|class|keyword|str\b"
)


@pytest.mark.parametrize(("given", "said"), FAULTS, ids=str)
def test_the_validators_words_are_plain(given: dict[str, Any], said: str) -> None:
    values = given if said.startswith("needed") else {"needed": 1} | given
    with pytest.raises(ValidationError) as error:
        TypeAdapter(_Everything).validate_python(values)
    assert fault_of(error.value) == said
    assert not JARGON.search(said)

"""What a record says and no sample would hold is never left out without a word."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_mc.data.ingest.corpus_text import read_sentences
from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.record_files import decode
from vila_mc.data.sources.records import Rejected, RejectionError, Source, read
from vila_mc.data.sources.text import TextSource
from vila_mc.data.sources.video import FramePolicy
from vila_mc.errors import DataError
from vila_mc.flow import RawImage, RawSample

ASKED = {"from": "human", "value": "What is it?"}
ANSWERED = {"from": "gpt", "value": "A cat."}
TALK = [ASKED, ANSWERED]
SAME_TALK = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
]


def conversations(file: Path) -> ConversationSource:
    return ConversationSource([file], ImageFolder(file.parent))


def first(source: Source) -> RawSample | Rejected:
    return next(iter(read(source)))


LOST = {
    "tools": {"conversations": TALK, "tools": '[{"name": "weather"}]'},
    "functions": {"messages": SAME_TALK, "functions": [{"name": "weather"}]},
    "videos": {"conversations": TALK, "videos": ["a.mp4"]},
    "sounds": {"conversations": TALK, "audios": ["a.wav"]},
    "boxes": {"conversations": TALK, "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}},
    "images of another case": {"conversations": TALK, "Image": "a.jpg"},
    "a video of another case": {"conversations": TALK, "Video": "a.mp4"},
    "a system text of another case": {"conversations": TALK, "SYSTEM": "Answer in French."},
    "tools of another case": {"conversations": TALK, "Tools": '[{"name": "weather"}]'},
    "a key with a space": {"conversations": TALK, "video ": "a.mp4"},
    "turns of another case": {"question": "Q", "answer": "A", "Messages": SAME_TALK},
    "a loss of another case": {"conversations": [ASKED, ANSWERED, ASKED, ANSWERED | {"Loss": 0}]},
    "one list of turns": {"conversations": TALK, "messages": SAME_TALK[:1]},
    "one text of a turn": {"conversations": [ASKED, ANSWERED | {"content": "A dog."}]},
    "one speaker of a turn": {"conversations": [ASKED | {"role": "assistant"}, ANSWERED]},
}


@pytest.mark.parametrize("record", LOST.values(), ids=LOST)
def test_a_record_of_which_a_part_is_not_read_is_rejected(
    record: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record))
    assert isinstance(first(conversations(file)), Rejected)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": TALK, "tools": None, "videos": [], "audio": ""},
        {"conversations": TALK, "Video": None, "Tools": [], "ID": 7, "Source": "web"},
        {"conversations": TALK, "messages": SAME_TALK},
        {"conversations": [ASKED | {"role": "user"}, ANSWERED | {"content": "A cat."}]},
    ],
    ids=["absent", "absent or of no meaning", "the same turns", "the same texts and speakers"],
)
def test_what_is_said_twice_or_not_at_all_loses_nothing(
    record: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record))
    assert isinstance(first(conversations(file)), RawSample)


def test_a_key_of_another_case_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"conversations": TALK, "Video": "ok.mp4"}))
    rejected = first(conversations(file))
    assert isinstance(rejected, Rejected)
    assert rejected.detail == "'Video' is not read, and would be lost; name it 'video'"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("record", ['{"text": "one", "text": "two"}', '{"a": {"b": 1, "b": 2}}'])
def test_a_key_that_stands_twice_is_not_one_value(name: str, record: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(f"[{record}]" if name.endswith(".json") else record)
    found = first(TextSource([file]))
    assert isinstance(found, Rejected)
    assert found.reason == "repeated key"


_TEXTS = st.text(st.sampled_from('ab:"\\\\, {}\n\u00e9'), max_size=6)
_VALUES = st.one_of(_TEXTS, st.none(), st.integers(-9, 9), st.lists(_TEXTS, max_size=2))


@given(st.lists(st.tuples(_TEXTS, _VALUES), max_size=4), st.sampled_from([":", " :", ": ", "\t:"]))
def test_keys_that_stand_twice_are_found_and_no_others(
    pairs: list[tuple[str, object]], colon: str
) -> None:
    inner = ", ".join(f"{json.dumps(key)}{colon}{json.dumps(value)}" for key, value in pairs)
    raw = f"{{{inner}}}".encode()
    if len({key for key, _ in pairs}) == len(pairs):
        assert decode(raw) == dict(pairs)
    else:
        with pytest.raises(RejectionError, match="repeated key"):
            decode(raw)


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(
    tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "video"
    folder.mkdir()
    names = [f"frame_{number}.png" for number in range(1, 13)]
    for name in names:
        (folder / name).write_bytes(make_image())
    file = tmp_path / "a.jsonl"
    asked = {"from": "human", "value": "<video>\nWhat happens?"}
    file.write_text(json.dumps({"video": "video", "conversations": [asked, ANSWERED]}))
    source = ConversationSource([file], ImageFolder(tmp_path), frames=FramePolicy(12))
    sample = first(source)
    assert isinstance(sample, RawSample)
    shown = [piece.name for piece in sample.pieces if isinstance(piece, RawImage)]
    assert shown == [f"video/{name}" for name in names]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_by_two_names_is_read_once_or_not_at_all(
    link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    link(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl and .*b\.jsonl are one file"):
        expand_inputs([str(tmp_path / "*.jsonl")])


def test_a_tokenizer_learns_from_the_contents_of_messages(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "second"}]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [{"content": "first"}, {"content": content}]}))
    assert list(read_sentences([file])) == ["first", "second"]

"""Readers of raw corpora: every record becomes a sample or is rejected with a reason."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.sources import records
from vila_mc.data.sources.conversations import read_conversations
from vila_mc.data.sources.interleaved import read_interleaved
from vila_mc.data.sources.pairs import read_pairs
from vila_mc.data.sources.records import Rejected
from vila_mc.data.sources.text import read_text
from vila_mc.errors import DataError
from vila_mc.flow import ImagePart, RawSample, TextPart

Write = Callable[..., Path]
FOLDER = Path("images")


def image(name: str) -> ImagePart:
    return ImagePart(FOLDER / name, name)


def end(text: str) -> TextPart:
    return TextPart(text, is_trained=True, ends_turn=True)


def reasons(results: list[RawSample | Rejected]) -> list[str]:
    return [result.reason for result in results if isinstance(result, Rejected)]


def test_text(write_lines: Write) -> None:
    file = write_lines("a.jsonl", [{"text": "one"}, "", {"text": "two <image>"}])
    assert list(read_text([file])) == [
        RawSample((end("one"),), f"{file}:1"),
        RawSample((end("two <image>"),), f"{file}:3"),
    ]


def test_text_under_another_key_and_compressed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write('{"content": "one"}\n')
    assert [sample.parts for sample in read_text([file], "content")] == [(end("one"),)]


def test_bad_records_are_rejected_where_they_stand(write_lines: Write) -> None:
    file = write_lines("a.jsonl", ["{", [1], {"t": 1}, {"text": 2}, {"text": " "}, {"text": "x"}])
    results = list(read_text([file]))
    assert reasons(results) == [
        "not JSON",
        "not an object",
        "missing key",
        "not a text",
        "empty text",
    ]
    assert [result.line for result in results if isinstance(result, Rejected)] == [1, 2, 3, 4, 5]
    assert isinstance(results[-1], RawSample)


def test_line_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\xff"}\n{"text": "x"}\n')
    assert reasons(list(read_text([file]))) == ["not UTF-8"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read_text([tmp_path / "none.jsonl"]))


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"junk", lambda b: b + b"junk"])
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(damage(gzip.compress(b'{"text": "one"}\n')))
    with pytest.raises(DataError, match="not a whole gzip file"):
        list(read_text([file]))


def test_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_READ_SIZE", 7)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": f"n {n} ]}},"} for n in range(50)] + [1], indent=1))
    results = list(read_text([file]))
    assert [sample.parts[0].text for sample in results[:50]] == [f"n {n} ]}}," for n in range(50)]
    assert reasons(results) == ["not an object"]
    assert results[-1].line == 51


def test_empty_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]\n")
    assert list(read_text([tmp_path / "a.json"])) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}', "does not hold a JSON array"),
        (b'[{"text": "x"}, {"te', "cut off after element 1"),
        (b'[{"text": "x"} {}]', "cut off after element 0"),
        (b'[{"text": "\xff"}]', "is not UTF-8"),
    ],
)
def test_damaged_array(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_text([tmp_path / "a.json"]))


def test_pairs(write_lines: Write) -> None:
    file = write_lines(
        "a.jsonl",
        [{"image": "a.jpg", "caption": " A fox. "}, {"image": "b/c.png", "text": "<image>"}],
    )
    assert [sample.parts for sample in read_pairs([file], FOLDER)] == [
        (image("a.jpg"), end("A fox.")),
        (image("b/c.png"), end("<image>")),
    ]


def test_pairs_that_are_none(write_lines: Write) -> None:
    file = write_lines(
        "a.jsonl",
        [
            {"caption": "x"},
            {"image": "a.jpg"},
            {"image": "../a.jpg", "caption": "x"},
            {"image": "/a.jpg", "caption": "x"},
        ],
    )
    assert reasons(list(read_pairs([file], FOLDER))) == ["missing key"] * 2 + ["bad image name"] * 2


def mmc4(sentences: list[object], *images: tuple[str, object]) -> dict[str, object]:
    infos = [
        {"image_name": name, "matched_text_index": at, "matched_sim": 0.3} for name, at in images
    ]
    return {"text_list": sentences, "image_info": infos, "similarity_matrix": []}


def test_interleaved(write_lines: Write) -> None:
    document = mmc4(["One.", " Two. ", "Three.", "Four."], ("c", 3), ("b", 1), ("a", 1))
    (sample,) = read_interleaved([write_lines("a.jsonl", [document])], FOLDER)
    assert sample.parts == (
        TextPart("One.", is_trained=True),
        image("b"),
        image("a"),
        TextPart("Two. Three.", is_trained=True),
        image("c"),
        end("Four."),
    )


def test_interleaved_keeps_the_first_six_images_of_image_info(write_lines: Write) -> None:
    document = mmc4(["S"] * 8, *[(f"{n}", 7 - n) for n in range(8)])
    (sample,) = read_interleaved([write_lines("a.jsonl", [document])], FOLDER)
    names = [part.name for part in sample.parts if isinstance(part, ImagePart)]
    assert names == ["5", "4", "3", "2", "1", "0"]


def test_interleaved_escapes_literal_markers(write_lines: Write) -> None:
    (sample,) = read_interleaved(
        [write_lines("a.jsonl", [mmc4(["An <image> tag"], ("a", 0))])], FOLDER
    )
    assert sample.parts == (image("a"), end("An <image> tag"))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"image_info": []}, "missing key"),
        ({"text_list": ["a"]}, "missing key"),
        (mmc4(["a"]), "no image"),
        (mmc4(["a", 1], ("a", 0)), "not a text"),
        (mmc4([" "], ("a", 0)), "empty text"),
        (mmc4(["a"], ("a", 1)), "bad image_info"),
        (mmc4(["a"], ("a", "0")), "bad image_info"),
        (mmc4(["a"], ("", 0)), "bad image name"),
        ({"text_list": ["a"], "image_info": ["a.jpg"]}, "bad image_info"),
    ],
)
def test_documents_that_are_none(
    write_lines: Write, document: dict[str, object], reason: str
) -> None:
    results = list(read_interleaved([write_lines("a.jsonl", [document])], FOLDER))
    assert reasons(results) == [reason]


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": v} for n, v in enumerate(values)]


def test_conversations_from_an_array(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    one = {"id": 1, "image": "a.jpg", "conversations": said("<image>\nQ", "A")}
    two = {"id": 2, "conversations": said("Q", "A")}
    three = {"id": 3, "images": ["a", "b"], "conversations": said("<image><image>Q", "A")}
    file.write_text(json.dumps([one, two, three]))
    samples = list(read_conversations([file], FOLDER, "vicuna_v1"))
    found = [
        [part.name for part in sample.parts if isinstance(part, ImagePart)] for sample in samples
    ]
    assert found == [["a.jpg"], [], ["a", "b"]]
    assert [sample.origin for sample in samples] == [f"{file}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"conversations": said("<image>Q", "A")}, "1 <image> markers but 0 images"),
        ({"image": "a", "conversations": said("Q", "A")}, "0 <image> markers but 1 images"),
        ({"image": "a", "images": ["a"], "conversations": said("Q", "A")}, "both 'image'"),
        ({"conversations": said("Q")}, "the turns are user"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "'from' is 'system'"),
        ({"conversations": ["x"]}, "no text under 'value'"),
        ({"conversations": said("Q", "<image>")}, "a gpt turn holds <image>"),
        ({}, "no list under 'conversations'"),
    ],
)
def test_conversations_that_are_none(
    write_lines: Write, record: dict[str, object], detail: str
) -> None:
    (result,) = read_conversations([write_lines("a.jsonl", [record])], FOLDER, "vicuna_v1")
    assert isinstance(result, Rejected)
    assert detail in result.detail

"""Readers of raw corpora: every record becomes a sample or is rejected with a reason."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.unit.data.archives import write_tar
from vila_mc.data.sources import record_files
from vila_mc.data.sources.image_files import ImageFolder, Images, ImageTars
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Record, Rejected, missing_key, read
from vila_mc.data.sources.text import TextSource
from vila_mc.errors import DataError
from vila_mc.flow import RawImage, RawSample, RawText

Write = Callable[..., Path]
ROOT = Path("images")
FOLDER = ImageFolder(ROOT)


def image(name: str) -> RawImage:
    return RawImage(ROOT / name, name)


def end(text: str) -> RawText:
    return RawText(text, is_trained=True, ends_turn=True)


def reasons(results: list[RawSample | Rejected]) -> list[str]:
    return [result.reason for result in results if isinstance(result, Rejected)]


def test_text(write_lines: Write) -> None:
    file = write_lines("a.jsonl", [{"text": "one"}, "", {"text": "two <image>"}])
    assert list(read(TextSource([file]))) == [
        RawSample((end("one"),), 1),
        RawSample((end("two <image>"),), 3),
    ]


def test_text_under_another_key_and_compressed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write('{"content": "one"}\n')
    assert [sample.pieces for sample in read(TextSource([file], "content"))] == [(end("one"),)]


def test_bad_records_are_rejected_where_they_stand(write_lines: Write) -> None:
    file = write_lines("a.jsonl", ["{", [1], {"t": 1}, {"text": 2}, {"text": " "}, {"text": "x"}])
    results = list(read(TextSource([file])))
    assert reasons(results) == [
        "not JSON",
        "not an object",
        "missing key",
        "not a text",
        "empty text",
    ]
    bad = [result for result in results if isinstance(result, Rejected)]
    assert [result.place for result in bad] == [1, 2, 3, 4, 5]
    assert bad[0].detail.endswith(" at character 3")  # of line 1, which json calls line 2
    assert bad[3].detail == "'text' is of type int"
    assert isinstance(results[-1], RawSample)


def test_line_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\xff"}\n{"text": "x"}\n')
    assert reasons(list(read(TextSource([file])))) == ["not UTF-8"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read(TextSource([tmp_path / "none.jsonl"])))


PACKED = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def zipped(data: bytes, name: str = "a.jsonl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(("suffix", "pack"), [*PACKED.items(), (".zip", zipped)])
def test_compressed_lines(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    lines = b"".join(b'{"text": "number %d"}\n' % n for n in range(5000))
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(pack(lines))
    samples = list(read(TextSource([file])))
    assert [sample.place for sample in samples] == list(range(1, 5001))
    assert samples[-1].pieces == (end("number 4999"),)


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"junk", lambda b: b + b"junk"])
def test_what_a_damaged_file_still_holds_counts(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(damage(PACKED[suffix](b'{"text": "one"}\n')))
    whole = tmp_path / "b.jsonl"
    whole.write_text('{"text": "two"}\n')
    *found, last = read(TextSource([file, whole]))
    assert isinstance(last, RawSample)
    assert reasons(found)[-1] == "damaged file"


def test_zip_of_several_files_and_zips_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x.jsonl", "readme.txt", "y.jsonl"):
            archive.writestr(name, '{"text": "one"}\n')
    assert [sample.place for sample in read(TextSource([file]))] == [
        "x.jsonl:1",
        "readme.txt",
        "y.jsonl:1",
    ]
    for damaged in (b"junk", zipped(b"{}", "a.txt"), zipped(b'{"text": "one"}\n')[:-30]):
        file.write_bytes(damaged)
        assert reasons(list(read(TextSource([file])))) == ["damaged file"]


def test_lines_without_an_end_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "LONGEST_RECORD", 30)
    monkeypatch.setattr(record_files, "_READ_SIZE", 7)
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n' + "x" * 100 + '\n{"text": "two"}\n' + "y" * 31)
    results = list(read(TextSource([file])))
    assert [result.place for result in results] == [1, 2, 3, 4]
    assert reasons(results) == ["too long", "too long"]


def test_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files, "_READ_SIZE", 7)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": f"n {n} ]}},"} for n in range(50)] + [1], indent=1))
    results = list(read(TextSource([file])))
    assert [sample.pieces[0].text for sample in results[:50]] == [f"n {n} ]}}," for n in range(50)]
    assert reasons(results) == ["not an object"]
    assert results[-1].place == 51


def test_empty_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]\n")
    assert list(read(TextSource([tmp_path / "a.json"]))) == []


@pytest.mark.parametrize(
    ("content", "kept", "detail"),
    [
        (b'{"text": "x"}', 0, "does not hold a JSON array"),
        (b'[{"text": "x"}, {"te', 1, "cut off or no JSON after element 1"),
        (b'[{"text": "x"}] {}', 1, "the 2 bytes after the end of its array, from byte 16 on"),
    ],
)
def test_damaged_array(tmp_path: Path, content: bytes, kept: int, detail: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    *samples, last = read(TextSource([tmp_path / "a.json"]))
    assert len(samples) == kept
    assert isinstance(last, Rejected)
    assert (last.place, last.reason) == (kept + 1, "damaged file")
    assert detail in last.detail


def test_pairs(write_lines: Write) -> None:
    file = write_lines(
        "a.jsonl",
        [{"image": "a.jpg", "caption": " A fox. "}, {"image": "b/c.png", "text": "<image>"}],
    )
    assert [sample.pieces for sample in read(PairSource([file], FOLDER))] == [
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
    assert (
        reasons(list(read(PairSource([file], FOLDER))))
        == ["missing key"] * 2 + ["bad image name"] * 2
    )


def mmc4(sentences: list[object], *images: tuple[str, object]) -> dict[str, object]:
    infos = [
        {"image_name": name, "matched_text_index": at, "matched_sim": 0.3} for name, at in images
    ]
    return {"text_list": sentences, "image_info": infos, "similarity_matrix": []}


def test_interleaved(write_lines: Write) -> None:
    document = mmc4(["One.", " Two. ", "Three.", "Four."], ("c", 3), ("b", 1), ("a", 1))
    (sample,) = read(InterleavedSource([write_lines("a.jsonl", [document])], FOLDER))
    assert sample.pieces == (
        RawText("One.", is_trained=True),
        image("b"),
        image("a"),
        RawText("Two. Three.", is_trained=True),
        image("c"),
        end("Four."),
    )


def test_interleaved_keeps_the_first_six_images_of_image_info(write_lines: Write) -> None:
    document = mmc4(["S"] * 8, *[(f"{n}", 7 - n) for n in range(8)])
    (sample,) = read(InterleavedSource([write_lines("a.jsonl", [document])], FOLDER))
    names = [piece.name for piece in sample.pieces if isinstance(piece, RawImage)]
    assert names == ["5", "4", "3", "2", "1", "0"]


def test_interleaved_escapes_literal_markers(write_lines: Write) -> None:
    (sample,) = read(
        InterleavedSource([write_lines("a.jsonl", [mmc4(["An <image> tag"], ("a", 0))])], FOLDER)
    )
    assert sample.pieces == (image("a"), end("An <image> tag"))


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
    results = list(read(InterleavedSource([write_lines("a.jsonl", [document])], FOLDER)))
    assert reasons(results) == [reason]


def documents(write_lines: Write, *records: dict[str, object], **options: Any) -> list[Any]:
    return list(read(InterleavedSource([write_lines("a.jsonl", records)], FOLDER, **options)))


def shown(sample: RawSample) -> list[str]:
    return [piece.name if isinstance(piece, RawImage) else piece.text for piece in sample.pieces]


def test_interleaved_keeps_other_numbers_of_images(write_lines: Write) -> None:
    document = mmc4(["S", "T"], ("a", 1), ("b", 0), ("c", 0))
    assert shown(documents(write_lines, document, most_images=2)[0]) == ["b", "S", "a", "T"]


def test_interleaved_leaves_out_unlike_images_before_it_counts(write_lines: Write) -> None:
    document = mmc4(["S", "T"], ("a", 1), ("b", 0), ("c", 0))
    infos: Any = document["image_info"]
    infos[0]["matched_sim"] = 0.1
    del infos[1]["matched_sim"]
    document["similarity_matrix"] = [[0, 0], [0.25, 0], [0, 0]]
    options = {"most_images": 1, "least_similarity": 0.25}
    assert shown(documents(write_lines, document, **options)[0]) == ["b", "S T"]
    document["similarity_matrix"] = [[0, 0]]
    assert reasons(documents(write_lines, document, **options)) == ["bad image_info"]
    infos[1]["matched_sim"] = infos[2]["matched_sim"] = -1
    assert reasons(documents(write_lines, document, **options)) == ["no similar image"]


def test_interleaved_skips_missing_images_before_it_counts(
    write_lines: Write, tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    file = write_lines("a.jsonl", [mmc4(["S", "T"], ("a" * 999, 1), ("c", 0), ("b", 0), ("d", 0))])
    files = {"b": make_image(), "c": b"junk", "d": make_image(), "e": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    tars = ImageTars((write_tar(tmp_path / "i.tar", files),))
    options: dict[str, Any] = {"skips_missing": True, "most_images": 1}
    both: list[Images] = [ImageFolder(tmp_path), tars.prepared(tmp_path)]
    for images in both:
        (sample,) = read(InterleavedSource([file], images, **options))
        assert isinstance(sample, RawSample)
        assert shown(sample) == ["b", "S T"]
    assert reasons(list(read(InterleavedSource([file], FOLDER, **options)))) == ["no image left"]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({}, "'image_info'; the record has no key at all"),
        ({"messages": [1]}, "'image_info'; the record has messages; the kind conversations reads"),
        ({"image_info": 1}, "'image_info'; the record has image_info"),
    ],
)
def test_missing_key_names_the_keys_and_the_kind(record: Record, detail: str) -> None:
    error = missing_key(record, "list under 'image_info'")
    assert error.detail.startswith(f"there is no list under {detail}")
    assert ("the kind" in error.detail) == ("the kind" in detail)


def test_interleaved_as_pairs(write_lines: Write) -> None:
    document = mmc4(["One.", " Two. ", ""], ("c", 1), ("../x", 0), ("d", 2), ("a", 0))
    results = documents(write_lines, document, as_pairs=True)
    samples = [result for result in results if isinstance(result, RawSample)]
    assert [sample.pieces for sample in samples] == [
        (image("c"), end("Two.")),
        (image("a"), end("One.")),
    ]
    assert reasons(results) == ["bad image name", "empty text"]

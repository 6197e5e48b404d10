"""Plain text files become documents: whole, or line by line; nothing of them vanishes."""

import gzip
import re
from pathlib import Path

import pytest
import zstandard

from tests.unit.data.archives import tar_of
from vila_mc.commands import preprocess_data
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest import inputs
from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.data.sources import plain_text
from vila_mc.data.sources.plain_text import Document
from vila_mc.data.sources.records import Rejected, read
from vila_mc.data.sources.text import READ_IN_FOLDERS, TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError

TWO = b"one\n\n  two \r\nthree\n"


def found(source: TextSource) -> list[str]:
    """Texts in their order; of what is rejected the reason."""
    return [
        f"{item.reason}" if isinstance(item, Rejected) else item.pieces[0].text  # type: ignore[union-attr]
        for item in read(source)
    ]


CASES: list[tuple[str, bytes, list[str], list[str]]] = [
    ("a.txt", TWO, ["one\n\n  two \nthree"], ["one", "  two ", "three"]),
    ("a.txt", b"\xef\xbb\xbfone", ["one"], ["one"]),
    ("a.TXT", b"one\rtwo", ["one\ntwo"], ["one\ntwo"]),
    ("a.txt", b"", ["empty text"], []),
    ("a.txt", b" \n\t\n", ["empty text"], []),
    ("a.txt", b"a \xff\nb", ["not UTF-8"], ["not UTF-8", "b"]),
    ("a.txt.gz", gzip.compress(TWO, mtime=0), ["one\n\n  two \nthree"], ["one", "  two ", "three"]),
    ("a.txt.zst", zstandard.compress(TWO), ["one\n\n  two \nthree"], ["one", "  two ", "three"]),
    ("a.txt.gz", gzip.compress(TWO, mtime=0)[:-9], ["damaged file"], ["damaged file"]),
    (
        "a.tar",
        tar_of({"x/1.txt": TWO, "2.md": b"no", "3.TXT": b"four\n", "4.txt": b""}),
        ["one\n\n  two \nthree", "not read", "four", "empty text"],
        ["one", "  two ", "three", "not read", "four"],
    ),
    (
        "a.tar",
        tar_of({"1.txt": b"one", "2.txt": b"two" * 400})[:2100],
        ["one", "damaged file"],
        ["one", "damaged file"],
    ),
    ("a.jsonl", b'{"text": "one"}\n', ["one"], ["one"]),
]


@pytest.mark.parametrize(("name", "content", "whole", "lines"), CASES)
def test_documents(
    tmp_path: Path, name: str, content: bytes, whole: list[str], lines: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    source = TextSource([tmp_path / name]).prepared(tmp_path)
    assert found(source) == whole
    by_line = found(TextSource([tmp_path / name], document="line").prepared(tmp_path))
    assert by_line[-len(lines) :] == lines if lines else by_line == []


@pytest.mark.parametrize("document", ["file", "line"])
def test_places_name_the_line_or_the_member(tmp_path: Path, document: Document) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"x/1.txt": TWO}))
    (tmp_path / "b.txt").write_bytes(TWO)
    source = TextSource([tmp_path / "a.tar", tmp_path / "b.txt"], document=document)
    places = [item.place for item in read(source)]
    assert places == (
        ["x/1.txt", 1] if document == "file" else ["x/1.txt:1", "x/1.txt:3", "x/1.txt:4", 1, 3, 4]
    )


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_document_has_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    monkeypatch.setattr(plain_text, "LONGEST_RECORD", 10)
    content = b"a line\nanother\n"
    file = tmp_path / ("a.tar" if is_packed else "a.txt")
    file.write_bytes(tar_of({"1.txt": content}) if is_packed else content)
    (item,) = read(TextSource([file]))
    assert isinstance(item, Rejected)
    assert (item.reason, item.unread_bytes) == ("too long", len(content))
    assert "the option document makes one of each line" in item.detail
    assert found(TextSource([file], document="line")) == ["a line", "another"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b'{"id": 1, "text": "x"}\n', "holds JSON records with 'text', not plain text"),
        ("a.txt", "text".encode("utf-16"), "is text in UTF-16"),
        ("a.txt", b"\x89PNG\r\n", "is an image"),
        ("a.tar", gzip.compress(b"x", mtime=0), "is compressed with gzip, not a plain tar"),
        (
            "a.tar.gz",
            gzip.compress(tar_of({"a.txt": b"x"}), mtime=0),
            "is a compressed tar archive",
        ),
        ("a.parquet", b"PAR1", "is a parquet file"),
    ],
)
def test_what_is_no_text_is_refused_before_it_is_read(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextSource([tmp_path / name]).prepared(tmp_path)


def test_braces_alone_are_no_records(tmp_path: Path) -> None:
    for number, content in enumerate((b"{ a poem", b'{"id": 1}\n', b'["text"]\n')):
        (tmp_path / f"{number}.txt").write_bytes(content)
        TextSource([tmp_path / f"{number}.txt"]).prepared(tmp_path)


def test_all_of_a_folder_is_a_document_or_is_listed(
    tmp_path: Path,
    tokenizer_path: Path,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, secret = tmp_path / "docs", tmp_path / "secret"
    (folder / "b").mkdir(parents=True)
    secret.mkdir()
    (secret / "key.txt").write_text("a secret")
    (folder / "a.txt").write_text("first")
    (folder / "b" / "c.txt").write_text("second")
    (folder / "b" / "d.jsonl").write_text('{"text": "third"}\n')
    (folder / "picture.png").write_bytes(b"\x89PNG1234")
    (folder / "key.txt").symlink_to(secret / "key.txt")
    (folder / "more").symlink_to(secret)
    prefix = tmp_path / "set"
    options = ("--input", folder, "--output", prefix, "--tokenizer", tokenizer_path)
    assert preprocess_data.main(["text", *map(str, options)], "p") == 0
    reader = IndexedReader(prefix)
    texts = [tokenizer.decode(reader.sample(n)[0].ids.tolist()) for n in range(len(reader))]  # type: ignore[union-attr]
    assert texts == ["first", "second", "third"]
    assert "3 x not read" in capsys.readouterr().out
    listed = (tmp_path / "set.rejected.jsonl").read_text()
    assert "a secret" not in listed
    assert listed.count("it is a link") == 2
    assert len(re.findall(r'"unread_bytes": 8\b', listed)) == 1  # a link has those of its target
    assert "document" not in reader.manifest.source


def test_the_manifest_says_where_a_line_is_a_document(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TWO)
    options = ("--input", tmp_path / "a.txt", "--output", tmp_path / "set")
    arguments = [*map(str, options), "--tokenizer", str(tokenizer_path), "--document", "line"]
    assert preprocess_data.main(["text", *arguments], "p") == 0
    reader = IndexedReader(tmp_path / "set")
    assert (len(reader), reader.manifest.source["document"]) == (3, "line")


def test_folders_are_for_those_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "c.png"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert expand_inputs([str(tmp_path)], endings=READ_IN_FOLDERS) == files
    with pytest.raises(DataError, match="is a folder"):
        expand_inputs([str(tmp_path)])
    with pytest.raises(DataError, match=r"holds no file that ends in \.tar"):
        expand_inputs([str(tmp_path)], endings=(".tar",))
    with pytest.raises(DataError, match="is named 2 times"):
        expand_inputs([str(tmp_path), str(files[0])], endings=READ_IN_FOLDERS)
    monkeypatch.setattr(inputs, "MOST_FILES", 2)
    with pytest.raises(DataError, match=r"holds more than 2 files\. Put them into \.tar archives"):
        expand_inputs([str(tmp_path)], endings=READ_IN_FOLDERS)


def test_workers_change_nothing(tmp_path: Path, tokenizer_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(f"document {number}\nof two lines")
    assert _made(folder, tokenizer_path, 1) == _made(folder, tokenizer_path, 2)


def _made(folder: Path, tokenizer: Path, workers: int) -> bytes:
    prefix = folder.parent / f"set{workers}"
    arguments = ["--input", str(folder), "--output", str(prefix), "--tokenizer", str(tokenizer)]
    assert preprocess_data.main(["text", *arguments, "--workers", str(workers)], "p") == 0
    return Path(f"{prefix}.bin").read_bytes()

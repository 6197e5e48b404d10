"""Archives, images and other files given for records are refused at once; damaged ones are not."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.unit.data.archives import tar_of
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.sources.image_files import ImageFolder, ImageTars
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.record_files import RecordSource
from vila_mc.data.sources.records import Source
from vila_mc.data.sources.text import TextSource
from vila_mc.errors import DataError

TAR = tar_of({"a.txt": b"A caption"})
LINES = json.dumps({"text": "Words."}).encode() + b"\n"
PICKLE = b"cos\nsystem\n(S'false'\ntR."
HERE = ImageFolder(Path("."))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", TAR, "is a tar archive"),
        ("a.tar.gz", gzip.compress(TAR, mtime=0), "is a compressed tar archive.* Decompress it"),
        ("a.tar.zst", zstandard.compress(TAR), "is a compressed tar archive"),
        ("a.tgz", gzip.compress(TAR, mtime=0), "is a compressed tar archive"),
        ("a.parquet", b"PAR1...", "is a parquet file.* kind pairs reads it"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), r"is compressed with gzip.* the ending \.gz"),
        ("a.jsonl", zstandard.compress(LINES), r"is compressed with zstd.* the ending \.zst"),
        ("a.jsonl.xz", b"\xfd7zXZ\0", "is compressed with xz.* Decompress it"),
        ("a.docx", b"PK\x03\x04...", "is a zip archive"),
        ("a.png", b"\x89PNG\r\n", r"is an image.* is given as images\."),
        ("a.webp", b"RIFF\0\0\0\0WEBP", "is an image"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "is text in UTF-16.* Convert it to UTF-8"),
        ("a.npy", b"\x93NUMPY\x01\0", "is no text"),
        ("a.pkl", PICKLE, "is a pickle.* Pickles run code"),
        ("a.pickle", PICKLE, "is a pickle"),
        ("a.pt", b"PK\x03\x04...", "is a pickle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("kind", [TextSource, InterleavedSource])
def test_what_holds_no_records(
    tmp_path: Path, kind: type[RecordSource], name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    source = kind([tmp_path / name], *([HERE] if kind is InterleavedSource else []))
    with pytest.raises(DataError, match=f"{name} {message}"):
        source.prepared(tmp_path)


@pytest.mark.parametrize("data", [TAR, b""], ids=["whole", "empty"])
def test_documents_with_images_are_not_in_archives(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    message = r"a\.tar is a tar archive, not JSON records.* pairs reads .* given as images\."
    with pytest.raises(DataError, match=message):
        InterleavedSource([tmp_path / "a.tar"], HERE).prepared(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", b""),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", b'{"text": "\0"}'),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:15]),
        ("a.jsonl.gz", b"junk"),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.jsonl.zst", b"junk"),
        ("a.zip", b"PK\x03\x04..."),
        ("a.json", b"[]"),
        ("records", LINES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_whole_or_damaged(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert TextSource([tmp_path / name]).prepared(tmp_path).files == [tmp_path / name]


def test_pairs_read_archives_too(tmp_path: Path) -> None:
    tar, parquet, packed = (tmp_path / name for name in ("a.tar", "a.parquet", "b.tar"))
    tar.write_bytes(TAR)
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"key": ["a"], "caption": ["b"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, parquet)
    for file in (tar, parquet):
        PairSource([file], HERE).prepared(tmp_path)
    with pytest.raises(DataError, match=r"a\.parquet stands for .*a\.tar, which is given too"):
        PairSource([tar, parquet], HERE).prepared(tmp_path)
    packed.write_bytes(gzip.compress(TAR, mtime=0))
    for source in (PairSource([packed], HERE), PairSource([], ImageTars((packed,)))):
        with pytest.raises(DataError, match=r"b\.tar is compressed with gzip, not a plain tar"):
            source.prepared(tmp_path)
    tar.unlink()
    with pytest.raises(DataError, match=r"a\.tar cannot be read: No such file"):
        PairSource([parquet], HERE).prepared(tmp_path)


def test_refused_before_anything_is_read(
    tmp_path: Path, tokenizer_path: Path, write_lines: Callable[..., Path]
) -> None:
    (tmp_path / "b.tgz").write_bytes(gzip.compress(TAR, mtime=0))
    first = write_lines("a.jsonl", ["not JSON"] * 5)
    source: Source = TextSource([first, tmp_path / "b.tgz"])
    with pytest.raises(DataError, match=r"b\.tgz is a compressed tar archive"):
        preprocess(source, tmp_path / "out" / "set", "text", tokenizer_path, facts={})
    assert not list((tmp_path / "out").iterdir())

"""Every byte of the input is a sample, or is listed: nothing vanishes."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.unit.data.archives import tar_of
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.sources.image_files import ImageFolder, ImageTars
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import NOT_READ, Rejected, read
from vila_mc.data.sources.text import TextSource

DAMAGED = "damaged file"
ONE, TWO = b'{"text": "one"}', b'{"text": "two"}'


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kept", "listed"),
    [
        ("a.json", b"[%s][%s]" % (ONE, TWO), 2, []),
        ("a.json", b"\xef\xbb\xbf [%s,\n] \n [%s ]\n" % (ONE, TWO), 2, []),
        ("a.json", b"[%s] {{{ no json" % ONE, 1, [DAMAGED]),
        ("a.json", b"[%s]%s" % (ONE, TWO), 1, [DAMAGED]),
        ("a.json", b"[%s, {x}, %s]" % (ONE, TWO), 2, ["not JSON"]),
        ("a.json", b'[%s, {"text": "\xff"}, %s]' % (ONE, TWO), 2, ["not UTF-8"]),
        ("a.json", b'[%s, "]", 1, null, [[]], %s]' % (ONE, TWO), 2, ["not an object"] * 4),
        ("a.json", b"[%s, %s, %s]" % (ONE, b"[" * 90_000 + b"]" * 90_000, TWO), 2, ["not JSON"]),
        ("a.json", b'[%s, {"text": "' % ONE, 1, [DAMAGED]),
        ("a.jsonl.gz", gzip.compress(ONE + b"\n", mtime=0) + gzip.compress(TWO, mtime=0), 2, []),
        ("a.jsonl.gz", gzip.compress(ONE + b"\n", mtime=0) + b"rest", 1, [DAMAGED]),
        ("a.jsonl.zst", zstandard.compress(ONE + b"\n") + zstandard.compress(TWO), 2, []),
        ("a.jsonl.zst", zstandard.compress(ONE + b"\n") + b"rest", 1, [DAMAGED]),
        ("a.zip", zipped(a_jsonl=ONE, b_json=TWO), 1, [NOT_READ]),
        ("a.zip", zipped(a_jsonl=ONE) + zipped(a_jsonl=TWO), 0, [DAMAGED]),
        ("a.zip", b"junk" + zipped(a_jsonl=ONE), 0, [DAMAGED]),
        ("a.zip", zipped(a_jsonl=ONE) + b"junk", 0, [DAMAGED]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_records(tmp_path: Path, name: str, content: bytes, kept: int, listed: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    found = list(read(TextSource([tmp_path / name])))
    rejected = [item for item in found if isinstance(item, Rejected)]
    assert [item.reason for item in rejected] == listed
    assert len(found) - len(rejected) == kept


def pair(key: str, image: bytes, **others: bytes) -> dict[str, bytes]:
    named = {f"{key}.{ending}": data for ending, data in others.items()}
    return {f"{key}.jpg": image, f"{key}.txt": b"a caption", **named}


def archives(image: bytes) -> dict[str, tuple[bytes, list[str], list[str]]]:
    """Bytes, keys that are kept, reasons that are listed."""
    first, second = tar_of(pair("a", image)), tar_of(pair("b", image))
    both = tar_of(pair("a", image) | pair("b", image))
    of_b = both.index(b"b.jpg\0")
    by_mac = {f"._{name}": b"\0\5\x16\7" for name in pair("a", image)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d", b"5")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            archive.addfile(info)
        fifo = tarfile.TarInfo("f")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    return {
        "one after the other": (first + second, ["a", "b"], []),
        "one after the other, without padding": (
            first.rstrip(b"\0").ljust(-(-len(first.rstrip(b"\0")) // 512) * 512, b"\0")
            + bytes(1024)
            + second,
            ["a", "b"],
            [],
        ),
        "a header of zeros": (both[:of_b] + bytes(512) + both[of_b + 512 :], ["a"], [DAMAGED]),
        "a header of ones": (
            both[:of_b] + b"\xff" * 512 + both[of_b + 512 :],
            ["a"],
            [DAMAGED],
        ),
        "junk after the end": (first + b"x" * 700, ["a"], [DAMAGED]),
        "a second archive that is cut": (first + second[:600], ["a"], [DAMAGED]),
        "files of macOS": (
            tar_of({**by_mac, **pair("a", image), "__MACOSX/x": b"", ".DS_Store": b""}),
            ["a"],
            [NOT_READ] * 4,
        ),
        "files of macOS between those of a sample": (
            tar_of({"._a.jpg": b"x", "a.jpg": image, "._a.txt": b"x", "a.txt": b"c"}),
            ["a"],
            [NOT_READ] * 2,
        ),
        "links, folders and devices": (buffer.getvalue() + first, ["a"], [NOT_READ] * 3),
        "metadata of a sample": (tar_of(pair("a", image, json=b"{}", cls=b"1")), ["a"], []),
    }


@pytest.mark.parametrize("name", archives(b""))
def test_archives_of_pairs(tmp_path: Path, make_image: Callable[..., bytes], name: str) -> None:
    content, kept, listed = archives(make_image(format="JPEG"))[name]
    (tmp_path / "0.tar").write_bytes(content)
    found = list(read(PairSource([tmp_path / "0.tar"], ImageFolder(tmp_path))))
    assert [item.place for item in found if not isinstance(item, Rejected)] == kept
    assert [item.reason for item in found if isinstance(item, Rejected)] == listed


@pytest.mark.parametrize("ending", ["jpg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff"])
def test_endings_of_images_in_archives(tmp_path: Path, ending: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of({f"a.{ending.upper()}": b"x", "a.txt": b"c"}))
    (sample,) = read(PairSource([tmp_path / "0.tar"], ImageFolder(tmp_path)))
    assert not isinstance(sample, Rejected)


@pytest.mark.parametrize("name", ["x/a.jpg", "./x/a.jpg", "x//a.jpg", "x/./a.jpg"])
@pytest.mark.parametrize("stored", ["x/a.jpg", "./x/a.jpg", "x//a.jpg"])
def test_a_tar_finds_what_a_folder_finds(tmp_path: Path, stored: str, name: str) -> None:
    (tmp_path / "i.tar").write_bytes(tar_of({stored: b"A"}))
    images = ImageTars((tmp_path / "i.tar",)).prepared(tmp_path)
    assert images.find(name).source == b"A"


def test_another_set_at_the_same_path_has_images_of_its_own(tmp_path: Path) -> None:
    for content in (b"A", b"BB"):
        (tmp_path / "i.tar").write_bytes(tar_of({"a.jpg": content}))
        images = ImageTars((tmp_path / "i.tar",)).prepared(tmp_path)
        assert images.find("a.jpg").source == content


def test_parquet_with_images(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = make_image()
    held = {"bytes": image, "path": "a.png"}
    for images in ([held, held, {"bytes": None, "path": "b"}], [image, image, None]):
        table = arrow.table({"image": images, "text": ["one", None, "three"], "n": [1, 2, 3]})
        parquet.write_table(table, tmp_path / "p.parquet")
        source = PairSource([tmp_path / "p.parquet"], ImageFolder(tmp_path)).prepared(tmp_path)
        first, second, third = read(source)
        assert not isinstance(first, Rejected)
        assert first.pieces[0].source == image  # type: ignore[union-attr]
        assert isinstance(second, Rejected)
        assert isinstance(third, Rejected)
        assert (second.reason, third.reason) == ("missing key", "missing image")


def test_what_is_not_read_is_counted(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(a_jsonl=ONE, b_txt=b"x" * 1234))
    made = preprocess(
        TextSource([tmp_path / "a.zip"]), tmp_path / "set", "text", tokenizer_path, facts={}
    )
    assert (made.rejected, made.unread_bytes) == ({NOT_READ: 1}, 1234)
    assert "not read  1,234 bytes of the input: the list says which" in made.lines()
    (line,) = (tmp_path / "set.rejected.jsonl").read_text().splitlines()
    values: dict[str, Any] = json.loads(line)
    assert (values["member"], values["unread_bytes"]) == ("b.txt", 1234)

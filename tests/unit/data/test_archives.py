"""WebDataset archives, img2dataset's parquet files, images in archives."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.data.archives import tar_of, write_tar
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.sources import tars
from vila_mc.data.sources.image_files import ImageFolder, ImageTars, check_name, index_tars
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Rejected, RejectionError, read
from vila_mc.errors import DataError, SetupError
from vila_mc.flow import RawImage, RawSample, RawText

NOWHERE = ImageFolder(Path("nowhere"))


def pairs_of(*files: Path, caption_key: str | None = None) -> list[RawSample | Rejected]:
    return list(read(PairSource(files, NOWHERE, caption_key)))


def shown(sample: RawSample | Rejected) -> tuple[object, ...]:
    if isinstance(sample, Rejected):
        return sample.place, sample.reason
    image, text = sample.pieces
    assert isinstance(image, RawImage)
    assert isinstance(text, RawText)
    assert text.is_trained
    assert text.ends_turn
    return sample.place, image.name, image.source, text.text


def test_webdataset(tmp_path: Path) -> None:
    file = write_tar(
        tmp_path / "0.tar",
        {
            "000.jpg": b"A",
            "000.txt": b" a fox ",
            "000.json": b'{"caption": "not this"}',
            "./x/001.PNG": b"B",
            "./x/001.json": b'{"caption": "<image> two"}',
            "x.y/002.webp": b"C",
            "x.y/002.json": b'{"text": "three"}',
        },
    )
    assert [shown(sample) for sample in pairs_of(file)] == [
        ("000", "000.jpg", b"A", "a fox"),
        ("./x/001", "./x/001.PNG", b"B", "<image> two"),
        ("x.y/002", "x.y/002.webp", b"C", "three"),
    ]
    assert [shown(sample)[-1] for sample in pairs_of(file, caption_key="caption")][1:] == [
        "<image> two",
        "missing key",
    ]


def test_samples_that_are_none(tmp_path: Path) -> None:
    file = write_tar(
        tmp_path / "0.tar",
        {
            "a.txt": b"no image",
            "b.jpg": b"no caption",
            "c.jpg": b"",
            "c.png": b"",
            "c.txt": b"two images",
            "d.jpg": b"",
            "d.txt": b"\xff",
            "e.jpg": b"",
            "e.txt": b" ",
            "f.jpg": b"",
            "f.json": b"{",
            "g.jpg": b"",
            "g.json": b"[]",
            "README": b"hello",
            "h.jpg": b"first",
            "h.txt": b"h",
            "h.JPG": b"second",
            "i.jpg": b"I",
            "i.txt": b"fine",
        },
    )
    assert [shown(sample)[:2] for sample in pairs_of(file)] == [
        ("a", "missing image"),
        ("b", "missing caption"),
        ("c", "several images"),
        ("d", "not UTF-8"),
        ("e", "empty text"),
        ("f", "not JSON"),
        ("g", "not an object"),
        ("README", "missing image"),
        ("h", "repeated file"),
        ("i", "i.jpg"),
    ]


WHOLE = tar_of({"a.jpg": b"A" * 600, "a.txt": b"a", "b.jpg": b"B" * 600, "b.txt": b"b"})


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        (b"", [("the first file", "damaged file")]),
        (b"junk", [("the first file", "damaged file")]),
        (WHOLE[:1000], [("the first file", "damaged file")]),
        (WHOLE[:3500], [("a", "a.jpg"), ("after a", "damaged file")]),
        (WHOLE[:4096], [("a", "a.jpg"), ("b", "missing caption"), ("after b", "damaged file")]),
        (WHOLE[:2560], [("a", "a.jpg"), ("after a", "damaged file")]),
        (WHOLE[:2570] + b"x" + WHOLE[2571:], [("a", "a.jpg"), ("after a", "damaged file")]),
    ],
)
def test_what_a_damaged_archive_still_holds_counts(
    tmp_path: Path, damaged: bytes, found: list[tuple[str, str]]
) -> None:
    file, whole = tmp_path / "0.tar", tmp_path / "1.tar"
    file.write_bytes(damaged)
    whole.write_bytes(WHOLE)
    assert [shown(sample)[:2] for sample in pairs_of(file, whole)] == [
        *found,
        ("a", "a.jpg"),
        ("b", "b.jpg"),
    ]


def test_links_in_archives_are_listed_and_folders_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    (tmp_path / "0.tar").write_bytes(buffer.getvalue())
    assert [shown(sample) for sample in pairs_of(tmp_path / "0.tar")] == [("a.txt", "not read")]


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tar cannot be read"):
        pairs_of(tmp_path / "none.tar")


def test_huge_members_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_IMAGE_BYTES", 500)
    (tmp_path / "0.tar").write_bytes(WHOLE)
    assert [shown(s)[1] for s in pairs_of(tmp_path / "0.tar")] == ["too long", "too long"]


def test_img2dataset(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_tar(
        tmp_path / "00000.tar",
        {"a.jpg": b"A", "a.txt": b"old", "b.jpg": b"B", "c.jpg": b"C", "c.json": b"{}"},
    )
    table = arrow.table(
        {
            "key": ["a", "x", "b", "c"],
            "caption": ["new", "not there", None, "third"],
            "url": [""] * 4,
        }
    )
    file = tmp_path / "00000.parquet"
    parquet.write_table(table, file)
    assert [shown(sample) for sample in pairs_of(file)] == [
        ("a", "a.jpg", b"A", "new"),
        ("b", "missing caption"),
        ("c", "c.jpg", b"C", "third"),
        ("rows without an image", "not read"),
    ]
    with pytest.raises(DataError, match=r"columns key, caption, url, but needs key and alt\. The"):
        pairs_of(file, caption_key="alt")
    assert len(pairs_of(file, caption_key="url")) == 4
    parquet.write_table(arrow.table({"key": ["a"], "text": ["other"]}), file)
    assert shown(pairs_of(file)[0])[-1] == "other"
    file.write_bytes(b"PAR1 junk PAR1")
    with pytest.raises(DataError, match=r"00000\.parquet (is not|is damaged)"):
        pairs_of(file)
    with pytest.raises(DataError, match="cannot be read"):
        pairs_of(tmp_path / "none.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SetupError, match=r"needs pyarrow.*vila_mc\[parquet\]"):
        pairs_of(tmp_path / "a.parquet")


@pytest.fixture
def stored(tmp_path: Path) -> ImageTars:
    one = write_tar(tmp_path / "1.tar", {"./images/a.jpg": b"A", "b.jpg": b"B" * 700})
    two = write_tar(
        tmp_path / "2.tar",
        {"deep/er/c.jpg": b"C", "x/b.jpg": b"X", "x/d.jpg": b"D", "y/d.jpg": b"E", "e": b"1"},
    )
    return index_tars([one, two], tmp_path / "index")


def test_images_in_archives(stored: ImageTars, tmp_path: Path) -> None:
    for name, data in (
        ("a.jpg", b"A"),
        ("images/a.jpg", b"A"),
        ("b.jpg", b"B" * 700),
        ("x/b.jpg", b"X"),
        ("c.jpg", b"C"),
    ):
        assert stored.find(name) == RawImage(data, name)
    with pytest.raises(RejectionError, match="none of the archives"):
        stored.find("f.jpg")
    assert stored.find("x/d.jpg").source == b"D"
    with pytest.raises(RejectionError, match=r"d\.jpg is in the archives more than once"):
        stored.find("d.jpg")
    again = index_tars([*stored.tars, stored.tars[1]], tmp_path / "again")
    with pytest.raises(RejectionError, match="ambiguous image"):
        again.find("e")
    document = {
        "text_list": ["One."],
        "image_info": [{"image_name": "c.jpg", "matched_text_index": 0}],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(document))
    (sample,) = read(InterleavedSource([tmp_path / "a.jsonl"], stored))
    assert sample.pieces[0] == RawImage(b"C", "c.jpg")


def test_archives_are_indexed_within_the_unfinished_set(
    tmp_path: Path, tokenizer_path: Path, make_image: Callable[..., bytes]
) -> None:
    tar = write_tar(tmp_path / "i.tar", {"c.jpg": make_image(format="JPEG")})
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "c.jpg", "caption": "One."}))
    source = PairSource([tmp_path / "a.jsonl"], ImageTars((tar,)))
    assert source.images.describe() == [{"name": "i.tar", "bytes": tar.stat().st_size}]
    output = tmp_path / "out" / "set"
    assert preprocess(source, output, "multimodal", tokenizer_path, facts={}).manifest.images == 1
    assert sorted(path.suffix for path in output.parent.iterdir()) == [".bin", ".idx", ".json"]


def test_what_a_damaged_archive_loses_is_said(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(WHOLE[:3500])  # within b.jpg; a.txt ends at 2,049
    last = pairs_of(tmp_path / "0.tar")[-1]
    assert isinstance(last, Rejected)
    assert last.detail == "it is cut off within 'b.jpg'. The last 1,451 bytes are lost"


def test_index_of_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(WHOLE[:3500])
    with pytest.raises(DataError, match=r"0\.tar is damaged"):
        index_tars([tmp_path / "0.tar"], tmp_path / "index")
    assert write_tar(tmp_path / "e.tar", {}) is not None
    with pytest.raises(RejectionError):
        index_tars([tmp_path / "e.tar"], tmp_path / "index").find("a")


@pytest.mark.parametrize(
    "name", ["", None, 3, "/etc/passwd", "../a", "a/../../b", "a\0b", "https://x.org/a.jpg"]
)
def test_names_that_lead_elsewhere(name: object, make_image: Callable[..., bytes]) -> None:
    with pytest.raises(RejectionError, match="bad image name"):
        check_name(name)

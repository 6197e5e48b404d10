"""Hostile records, archives and images: each is listed or refused, soon and in little memory."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from PIL import Image

from tests.unit.data.archives import tar_of
from vila_mc.data.image_codec import open_image
from vila_mc.data.images import check_image, load_image
from vila_mc.data.ingest.preprocess import Preprocessed, preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder, ImageTars, read_image
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Rejected, RejectionError, Source, read
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import DataError, printable, run_cli
from vila_mc.evaluation.questions import read_questions

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"text": "a good record"}
SECONDS = 60.0
"""What nothing here may take, on a busy machine."""


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    train_tokenizer([f"a good record, number {n}: what is it?" for n in range(200)], path, 300)
    return path


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


def jpeg(**options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def run(source: Source, output: Path, tokenizer: Path, workers: int = 1) -> Preprocessed:
    kind: Any = "text" if isinstance(source, TextSource) else "multimodal"
    limit = RejectionLimit.parse("100%")
    return preprocess(source, output, kind, tokenizer, facts={}, workers=workers, limit=limit)


# Records


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "hostile",
    [
        DEEP,
        f'{{"text": "x", "y": {DEEP}}}',
        '{"text": "x", "y": ' + '{"a":' * 9000 + "1" + "}" * 9001,
        '{"text": "\\ud800"}',
        f'{{"text": {"9" * 5000}}}',
        '{"text": NaN}',
        f'{{"text": "x", "y": [{",".join(["[]"] * 600_000)}]}}',
        f'{{"text": "x", "y": [{",".join(["[[]]"] * 400_000)}]}}',
        '{"text": "\\u0000\\u001b[31m"',
    ],
    ids=lambda text: text[:30],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_one_bad_record_spoils_nothing_else(
    tmp_path: Path, tokenizer_path: Path, name: str, hostile: str
) -> None:
    good = json.dumps(GOOD)
    lines = [good, hostile, good]
    text = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    (tmp_path / name).write_text(text)
    if hostile.count("{") > hostile.count("}") and name == "a.json":
        return  # the rest of the array is its own
    made = run(TextSource([tmp_path / name]), tmp_path / "set", tokenizer_path)
    assert (made.manifest.samples, sum(made.rejected.values())) == (2, 1)


def test_workers_do_not_change_what_is_rejected(tmp_path: Path, tokenizer_path: Path) -> None:
    elements = [*[json.dumps(GOOD)] * 40, DEEP, '{"text": "\\ud800"}', *[json.dumps(GOOD)] * 40]
    (tmp_path / "a.json").write_text(f"[{','.join(elements)}]")
    (tmp_path / "b.json").write_text("[]")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for workers in (1, 2):
        run(TextSource(files), tmp_path / f"set{workers}", tokenizer_path, workers)
    first, second = ((tmp_path / f"set{workers}.rejected.jsonl").read_text() for workers in (1, 2))
    assert first == second
    assert len(first.splitlines()) == 2


@pytest.mark.parametrize(
    "name",
    ["\ud800.jpg", "a/\udfff/b.jpg", "x" * 5000, "a\0b", "../a.jpg", "/etc/passwd", "a/../../b"],
)
def test_names_of_images(tmp_path: Path, name: str) -> None:
    (tmp_path / "i.tar").write_bytes(tar_of({"a.jpg": b""}))
    tars = ImageTars((tmp_path / "i.tar",)).prepared(tmp_path)
    for images in (ImageFolder(tmp_path), tars):
        with pytest.raises(RejectionError):
            read_image(images.find(name))
    for key in ("image", "video"):
        record = {key: name, "conversations": [{"from": "human", "value": "<video>"}]}
        (tmp_path / "a.jsonl").write_text(json.dumps(record))
        (found,) = read(ConversationSource([tmp_path / "a.jsonl"], ImageFolder(tmp_path)))
        assert isinstance(found, Rejected)


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_that_lead_out(tmp_path: Path, is_folder: bool) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for made in (inside, outside):
        made.mkdir()
    (outside / "a.jpg").write_bytes(jpeg())
    (inside / "own.jpg").write_bytes(jpeg())
    (inside / "near.jpg").symlink_to("own.jpg")
    name = "far/a.jpg" if is_folder else "far.jpg"
    (inside / name.partition("/")[0]).symlink_to(outside if is_folder else outside / "a.jpg")
    folder = ImageFolder(inside)
    assert read_image(folder.find("near.jpg")) == jpeg()
    with pytest.raises(RejectionError, match="leads out of the image folder by a link"):
        folder.find(name)
    if is_folder:
        with pytest.raises(RejectionError, match="leads out"):
            folder.folder("far")
    assert read_image(ImageFolder(inside, follows_links=True).find(name)) == jpeg()
    question = {"id": 1, "task": "t", "question": "q", "answer": "a", "chance": 0.5}
    asked = tmp_path / "q.jsonl"
    for wrong in (name, "../outside/a.jpg", str(outside / "a.jpg")):
        asked.write_text(json.dumps(question | {"images": [wrong]}))
        with pytest.raises(DataError, match="leads out of the image folder"):
            read_questions(asked, inside)
    asked.write_text(json.dumps(question | {"images": [name]}))
    assert read_questions(asked, inside, follow_links=True)


# Files that are none, and terminals


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.zip", "a.jsonl.gz", "a.tar", "a.parquet"])
def test_a_pipe_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    source: Any = PairSource([tmp_path / name], ImageFolder(tmp_path))
    with pytest.raises(DataError, match="pipe or device, not a file"):
        source.prepared(tmp_path)
    with pytest.raises(DataError, match="pipe or device, not a file"):
        list(read(source))
    with pytest.raises(RejectionError, match="pipe or device"):
        read_image(ImageFolder(tmp_path).find(name))
    if name == "a.tar":
        with pytest.raises(DataError, match="pipe or device"):
            ImageTars((tmp_path / name,)).prepared(tmp_path)


ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\u202e\u2028\ud800"


def test_nothing_that_moves_a_cursor_is_printed(
    tmp_path: Path, tokenizer_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({ESCAPES: 1}) + "\n")
    with pytest.raises(SystemExit):
        run_cli(
            lambda: preprocess(  # type: ignore[arg-type,return-value]
                TextSource([tmp_path / "a.jsonl"]), tmp_path / "s", "text", tokenizer_path, facts={}
            )
        )
    printed = capfd.readouterr().err
    assert "owned" in printed
    assert printed.isprintable() or printed.removesuffix("\n").isprintable()
    assert printable(ESCAPES).isascii()


# Archives


def chained(count: int) -> bytes:
    """A tar whose file has ``count`` long names, each before the other."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 200
    one = header.tobuf(tarfile.GNU_FORMAT) + b"n" * 200 + bytes(312)
    return one * count + tar_of({"a.jpg": b"x"})


def claiming(size: int, kind: bytes) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, size
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(2 << 20)


def negative() -> bytes:
    data = bytearray(tar_of({"a.jpg": b"x" * 600, "b.jpg": b"x"}))
    data[124:136] = b"\xff" * 12  # the size as a negative number
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        chained(20_000),
        claiming(1 << 33, tarfile.GNUTYPE_LONGNAME),
        claiming(1 << 33, tarfile.XHDTYPE),
        claiming(2 << 20, tarfile.XHDTYPE),
        negative(),
    ],
    ids=["chained names", "long name", "long attributes", "attributes of zeros", "negative size"],
)
def test_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    *_, last = read(PairSource([tmp_path / "a.tar"], ImageFolder(tmp_path)))
    assert isinstance(last, Rejected)
    assert last.reason == "damaged file"
    with pytest.raises(DataError, match="is damaged"):
        ImageTars((tmp_path / "a.tar",)).prepared(tmp_path)


# Images


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes ``count`` times."""
    picture = jpeg(progressive=True)
    last = picture.rindex(b"\xff\xda")
    return picture[:last] + (picture[last:-2] * count) + picture[-2:]


def test_a_jpeg_of_many_scans_is_not_decoded() -> None:
    for count in (200, 5000):
        with pytest.raises(DataError, match="a JPEG of more than 100 scans"):
            check_image(with_scans(count), "pic")
        with pytest.raises(DataError, match="scans"):
            load_image(with_scans(count), 28, "crop")
    check_image(with_scans(50), "pic")


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(%pipe%touch owned) (w) file\nshowpage\n%%EOF\n"
)


@pytest.mark.parametrize("data", [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(28) + POSTSCRIPT])
def test_no_image_starts_a_program(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    for use in (
        lambda: open_image(data, "pic"),
        lambda: check_image(data, "pic"),
        lambda: load_image(data, 28, "crop"),
    ):
        with pytest.raises(DataError, match="is not an image that can be read"):
            use()


def test_no_other_door_for_images() -> None:
    """Whatever opens an image does so through ``image_codec``, which says what may be opened."""
    opens = re.compile(r"\bImage\.open\(|\bImageFile\b|imread\(|read_image\(.*torchvision")
    found = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "vila_mc").rglob("*.py"))
        if opens.search(file.read_text(encoding="utf-8"))
    ]
    # A model card shows users of transformers how to open their own photo.
    assert found == ["vila_mc/convert/formats/model_card.py", "vila_mc/data/image_codec.py"]


# Memory

READING, WHOLE = 768 << 20, 3 << 30
"""Bytes of address space in which a worker reads whatever is packed in a file, and does all its
work on records of the largest size. docs/data_format.md promises them."""
SCRIPT = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]),) * 2)
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.text import TextSource
file, output, tokenizer = map(Path, sys.argv[1:4])
is_text = file.suffix != ".parquet" and file.stem != "pixels"
source = TextSource([file]) if is_text else PairSource([file], ImageFolder(file.parent))
made = preprocess(source.prepared(output.parent), output, "text" if is_text else "multimodal",
                  tokenizer, facts={}, limit=RejectionLimit.parse("100%"))
print(made.manifest.samples, json.dumps(made.rejected))
"""
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"


def packed_line(size: int, compress: Callable[[bytes], bytes]) -> bytes:
    """A line of ``size`` MiB, in frames or members of one MiB each, and a good one."""
    return (
        compress(b'{"text": "')
        + compress(b"x" * (1 << 20)) * size
        + compress(b'"}\n')
        + compress(GOOD_LINE)
    )


def bombs() -> dict[str, Callable[[Path], object]]:
    lists = b'{"text": "a", "x": [' + b"[]," * (20 << 20) + b"[]]}\n"
    long_window = zstandard.ZstdCompressionParameters.from_level(3, window_log=30)

    def parquet(file: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        rows = {"image": [jpeg()] * 2000, "caption": ["w" * (1 << 20)] * 64 + ["w"] * 1936}
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow.table(rows), file, row_group_size=1000, compression="zstd"
        )

    def pixels(file: Path) -> None:
        Image.new("RGBA", (8000, 8000)).save(file.with_name("a.png"), compress_level=1)
        file.write_text(json.dumps({"image": "a.png", "caption": "c"}) + "\n{")

    return {
        "pixels.jsonl": pixels,
        "line.jsonl.gz": lambda file: file.write_bytes(packed_line(900, gzip.compress)),
        "line.jsonl.zst": lambda file: file.write_bytes(packed_line(900, zstandard.compress)),
        "values.jsonl.gz": lambda file: file.write_bytes(gzip.compress(lists + GOOD_LINE, 1)),
        "values.json": lambda file: file.write_bytes(b"[%s,%s]" % (lists, GOOD_LINE)),
        "window.jsonl.zst": lambda file: file.write_bytes(
            zstandard.compress(GOOD_LINE)
            + zstandard.ZstdCompressor(compression_params=long_window).compress(b"x" * (1 << 20))
        ),
        "rows.parquet": parquet,
        "text.jsonl": lambda file: file.write_bytes(b'{"text": "%s"}\n{' % (b"a b" * (21 << 20))),
    }


@pytest.mark.parametrize("name", bombs())
def test_memory_has_a_ceiling(tmp_path: Path, tokenizer_path: Path, name: str) -> None:
    bombs()[name](tmp_path / name)
    ceiling = WHOLE if name in ("rows.parquet", "text.jsonl", "pixels.jsonl") else READING
    arguments = (tmp_path / name, tmp_path / "set", tokenizer_path, ceiling)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    samples, _, rejected = done.stdout.partition(" ")
    if name == "rows.parquet":
        assert int(samples) == 2000
    else:
        assert (int(samples), sum(json.loads(rejected).values())) == (1, 1)

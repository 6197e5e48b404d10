"""Files that are small and well formed, and would still take all memory or time."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vila_mc.data.images import load_image
from vila_mc.data.ingest.corpus_text import read_sentences
from vila_mc.errors import DataError


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def test_an_image_of_chunks_alone() -> None:
    header = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    with pytest.raises(DataError, match="many chunks is damaged"):
        load_image(header + 300_000 * _chunk(b"IDAT", b""), 28, "crop", "many chunks")


def _lzma(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jsonl", '{"text": "a"}\n')


def _overlapping(file: Path) -> None:
    """Two names for the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", '{"text": "a"}\n')
        archive.filelist.append(archive.filelist[0])


@pytest.mark.parametrize("make", [_lzma, _overlapping])
def test_an_archive_with_a_trick(make: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zip"
    make(file)
    sentences: Iterator[str] = iter(read_sentences([file]))
    with pytest.raises(DataError, match=r"a\.jsonl\.zip") as refused:
        list(sentences)
    assert "\n" not in str(refused.value)

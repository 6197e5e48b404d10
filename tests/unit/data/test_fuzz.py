"""Thousands of damaged files: the reader survives all, and each bad record has a reason."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from tests.unit.data.archives import tar_of, write_tar
from vila_mc.data.indexed.layout import DTYPE_CODES
from vila_mc.data.indexed.serialisation import serialise
from vila_mc.data.ingest.encode import AS_IS, encode_samples
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Rejected, RejectionError, Source, read
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.flow import EncodedSample, RawSample

ROUNDS = 500
"""Damaged files of each kind."""


def damaged(data: bytes, choose: random.Random) -> bytes:
    """The bytes with one to four of: a bit turned, bytes cut out, copied, overwritten, cut off."""
    out = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(out) or 1)
        size = choose.choice((1, 2, 8, 100, 512))
        match choose.randrange(6):
            case 0 if out:
                out[at] ^= 1 << choose.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = out[at : at + size]
            case 3:
                out[at : at + size] = choose.randbytes(size)
            case 4:
                out[at : at + size] = choose.choice((b'"', b"{", b"[", b"\0" * size, b"\xff", b"9"))
            case 5 if choose.random() < 0.3:
                del out[at:]
    return bytes(out)


def survives(source: Source, tokenizer: Tokenizer) -> Iterator[str]:
    """Read and encode everything as a worker does; the reasons of what was rejected."""
    found = list(read(source))
    results = encode_samples(
        [sample for sample in found if isinstance(sample, RawSample)], tokenizer, AS_IS
    )
    kept: list[EncodedSample] = []
    for result in results:
        if isinstance(result, RejectionError):
            assert result.detail
            yield result.reason
        else:
            kept.append(result)
    stored = serialise(kept, "multimodal", DTYPE_CODES[1])
    assert len(stored.data) == stored.lengths.sum()
    for rejected in found:
        if isinstance(rejected, Rejected):
            json.loads(json.dumps(rejected.to_json()))
            assert rejected.detail
            assert rejected.place
            yield rejected.reason


@pytest.fixture(scope="module")
def pictures(make_image: Callable[..., bytes]) -> list[bytes]:
    return [make_image(20, 14, format) for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


MMC4 = {
    "text_list": ["One.", "Two <image>."],
    "image_info": [{"image_name": "a.jpg", "matched_text_index": 1, "matched_sim": 0.3}],
    "similarity_matrix": [[0.1, 0.3]],
}
LLAVA = {
    "image": "a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nQ"},
        {"from": "gpt", "value": "A"},
    ],
}
MESSAGES = {
    "images": ["a.jpg"],
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ],
}


CONTENTS = {
    "text.jsonl": lines({"text": "one"}, {"text": "two \ud800"}, {"text": "three"}),
    "text.jsonl.gz": gzip.compress(lines({"text": "one"}, {"text": "two"}), mtime=0),
    "text.jsonl.zst": zstandard.ZstdCompressor().compress(lines({"text": "one"}) * 9),
    "text.json": json.dumps([{"text": "one"}, {"text": "two"}]).encode(),
    "pairs.jsonl": lines({"image": "a.jpg", "caption": "x"}) * 3,
    "mmc4.jsonl": lines(MMC4, MMC4),
    "llava.json": json.dumps([LLAVA, MESSAGES]).encode(),
    "messages.jsonl": lines(MESSAGES, LLAVA, {"question": "Q", "answer": "A"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_damaged_records(
    tmp_path: Path, tokenizer: Tokenizer, pictures: list[bytes], name: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(pictures[0])
    file, images = tmp_path / name, ImageFolder(tmp_path)
    source: Source = {
        "text": TextSource([file]),
        "pairs": PairSource([file], images),
        "mmc4": InterleavedSource([file], images, least_similarity=0.2),
        "llava": ConversationSource([file], images),
        "messages": ConversationSource([file], images),
    }[name.partition(".")[0]]
    choose, reasons = random.Random(name), Counter[str]()
    for _ in range(ROUNDS):
        file.write_bytes(damaged(CONTENTS[name], choose))
        reasons.update(survives(source, tokenizer))
    assert reasons.total() > ROUNDS / 10
    assert len(reasons) > 1 or name.endswith(("gz", "zst"))


def test_damaged_archives(tmp_path: Path, tokenizer: Tokenizer, pictures: list[bytes]) -> None:
    members = {"a.jpg": pictures[0], "a.txt": b"a", "b.png": pictures[1], "b.json": lines(MMC4)}
    content = tar_of(members | {"c.webp": pictures[2], "c.json": b'{"caption": "c"}'})
    file = tmp_path / "0.tar"
    choose, reasons = random.Random(1), Counter[str]()
    for _ in range(ROUNDS):
        file.write_bytes(damaged(content, choose))
        reasons.update(survives(PairSource([file], ImageFolder(tmp_path)), tokenizer))
    assert {"damaged file", "unusable image", "missing key", "missing caption"} <= reasons.keys()


def test_damaged_images(tmp_path: Path, tokenizer: Tokenizer, pictures: list[bytes]) -> None:
    choose, reasons = random.Random(2), Counter[str]()
    for number in range(ROUNDS):
        picture = damaged(pictures[number % len(pictures)], choose)
        file = write_tar(tmp_path / "0.tar", {"a.jpg": picture, "a.txt": b"a"})
        reasons.update(survives(PairSource([file], ImageFolder(tmp_path)), tokenizer))
    assert reasons.keys() == {"unusable image"}
    assert ROUNDS / 10 < reasons.total() < ROUNDS

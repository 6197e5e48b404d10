"""Samples that are kept and may not be what was meant are counted in the closing table."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from vila_mc.data.image_codec import is_turned
from vila_mc.data.ingest.encode import SPELLED, TURNED, ImagePolicy
from vila_mc.data.ingest.preprocess import Preprocessed, preprocess
from vila_mc.data.ingest.rejection import Tally
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.text import TextSource


def photo(orientation: int | None, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "camera"
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (photo(6), True),
        (photo(2), True),
        (photo(1), False),
        (photo(0), False),
        (photo(None), False),
        (photo(6)[:60], False),
        (b"Exif\0\0", False),
        (b"", False),
    ],
)
def test_images_that_viewers_turn(data: bytes, expected: bool) -> None:
    assert is_turned(data) is expected


def _pairs(folder: Path, tokenizer: Path, resize: int | None = None) -> Preprocessed:
    (folder / "turned.jpg").write_bytes(photo(6))
    (folder / "straight.jpg").write_bytes(photo(1))
    file = folder / "a.jsonl"
    names = ("turned.jpg", "straight.jpg", "turned.jpg")
    file.write_text("".join(json.dumps({"image": n, "caption": "a <s> b"}) + "\n" for n in names))
    source = PairSource([file], ImageFolder(folder))
    policy = ImagePolicy(resize=resize)
    return preprocess(source, folder / "out", "multimodal", tokenizer, facts={}, images=policy)


@pytest.mark.parametrize("resize", [None, 20])
def test_the_closing_table_says_what_was_noticed(
    tokenizer_path: Path, tmp_path: Path, resize: int | None
) -> None:
    made = _pairs(tmp_path, tokenizer_path, resize)
    assert made.noticed == {SPELLED: 3, TURNED: 2}
    assert f"notice    2 x {TURNED}" in made.lines()


@pytest.mark.parametrize(
    ("text", "is_noticed"),
    [
        ("<s>[INST] Hello [/INST]", True),
        ("ends</s>", True),
        ("a < b, <S>", False),
        ("plain", False),
    ],
)
def test_texts_that_spell_special_tokens(
    tokenizer_path: Path,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    text: str,
    is_noticed: bool,
) -> None:
    source = TextSource([write_lines("a.jsonl", [{"text": text}])])
    made = preprocess(source, tmp_path / "out", "text", tokenizer_path, facts={})
    assert made.noticed == ({SPELLED: 1} if is_noticed else {})


def test_a_run_that_goes_on_remembers_what_was_noticed() -> None:
    tally = Tally()
    tally.noticed[SPELLED] = 3
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally
    assert Tally.from_json({"seen": 1, "rejected": {}, "firsts": {}}).noticed == {}

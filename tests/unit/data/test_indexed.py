"""Indexed datasets: round trips, Megatron-Core's reader and writer, every kind of damage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.old_sets import make_old
from tests.support.pieces import text_piece
from vila_mc.data.indexed import dataset_manifest, writer
from vila_mc.data.indexed.dataset_manifest import read_manifest
from vila_mc.data.indexed.layout import text_dtype
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.files import sha256_of
from vila_mc.flow import EncodedSample, ImagePiece, Piece, TextPiece

IDS = st.lists(st.integers(0, 399), max_size=9).map(tuple)
TEXTS = st.builds(text_piece, IDS, st.booleans())
IMAGES = st.builds(ImagePiece, st.binary(max_size=9), st.just("an image"))
SAMPLES = st.lists(
    st.lists(st.one_of(TEXTS, IMAGES), min_size=1, max_size=4), min_size=1, max_size=6
)
REUSED_FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(
    prefix: Path, kind: dataset_manifest.SetKind, tokenizer: Tokenizer, samples: list[EncodedSample]
) -> Path:
    with IndexedWriter(prefix, kind, tokenizer) as writer:
        for sample in samples:
            writer.add(sample)
        writer.finish({"kind": "test"})
    return prefix


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"set.{len(list(tmp_path.iterdir()))}"


def unpack(piece: Piece) -> tuple[object, ...]:
    if isinstance(piece, TextPiece):
        return tuple(piece.ids.tolist()), piece.is_trained
    return (bytes(piece.data),)


def packed(piece: Piece) -> tuple[object, ...]:
    if isinstance(piece, TextPiece):
        return tuple(piece.ids.tolist()), piece.is_trained
    return (bytes(piece.data) + bytes(-len(piece.data) % 4),)


@REUSED_FIXTURES
@given(pieces=SAMPLES)
def test_multimodal_round_trip(
    tmp_path: Path, tokenizer: Tokenizer, pieces: list[list[Piece]]
) -> None:
    pieces = [[*sample, text_piece((1,), False)] for sample in pieces]  # never an empty .bin
    samples = [EncodedSample(tuple(sample)) for sample in pieces]
    reader = IndexedReader(write(fresh(tmp_path), "multimodal", tokenizer, samples))
    assert len(reader) == len(samples)
    for index, sample in enumerate(pieces):
        assert [unpack(piece) for piece in reader.sample(index)] == [packed(p) for p in sample]
    texts = [[len(p.ids) for p in sample if isinstance(p, TextPiece)] for sample in pieces]
    images = [[1 for p in sample if isinstance(p, ImagePiece)] for sample in pieces]
    assert reader.token_counts().tolist() == [sum(counts) for counts in texts]
    assert reader.image_counts().tolist() == [sum(counts) for counts in images]
    assert reader.manifest.tokens == reader.token_counts().sum()
    assert reader.manifest.images == reader.image_counts().sum()


@REUSED_FIXTURES
@given(documents=st.lists(IDS.filter(len), min_size=1, max_size=6))
def test_text_set_is_what_megatron_writes(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[tuple[int, ...]]
) -> None:
    stock = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    samples = [EncodedSample((text_piece(ids, True),)) for ids in documents]
    ours = write(fresh(tmp_path), "text", tokenizer, samples)
    theirs = tmp_path / "theirs"
    dtype = stock.DType.optimal_dtype(tokenizer.vocab_size)
    builder = stock.IndexedDatasetBuilder(f"{theirs}.bin", dtype)
    for ids in documents:
        builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{theirs}.idx")
    for suffix in (".bin", ".idx"):
        assert Path(f"{ours}{suffix}").read_bytes() == Path(f"{theirs}{suffix}").read_bytes()
    reader = IndexedReader(ours)
    assert [unpack(reader.sample(n)[0]) for n in range(len(reader))] == [
        (ids, True) for ids in documents
    ]
    assert reader.token_counts().tolist() == [len(ids) for ids in documents]
    assert not reader.image_counts().any()


def test_megatron_reads_a_multimodal_set(
    tmp_path: Path, make_set: Callable[..., Path], make_image: Callable[..., bytes]
) -> None:
    stock = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = stock.IndexedDataset(str(make_set(tmp_path / "set", 3)), multimodal=True)
    assert dataset.document_indices.tolist() == [0, 3, 6, 9]
    assert dataset.index.sequence_modes.tolist() == [2, 1, 0] * 3
    prompt, image, answer = (dataset[position] for position in (3, 4, 5))
    assert prompt[0].view(np.int32).tolist() == [1, 8]
    assert image[0].tobytes().startswith(make_image(seed=1))
    assert answer[0].view(np.int32).tolist() == [11, 9, 2]


@pytest.mark.parametrize(("vocab_size", "name"), [(65_499, "uint16"), (65_500, "int32")])
def test_text_dtype(vocab_size: int, name: str) -> None:
    assert text_dtype(vocab_size).name == name


def test_index_is_written_in_chunks(
    tmp_path: Path, make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_set(tmp_path / "whole", 5)
    monkeypatch.setattr(writer, "_CHUNK", 2)
    cut = make_set(tmp_path / "cut", 5)
    assert Path(f"{whole}.idx").read_bytes() == Path(f"{cut}.idx").read_bytes()


def test_samples_outside_the_set(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    reader = IndexedReader(make_set(tmp_path / "set", 2))
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"sample {index} of 2"):
            reader.sample(index)


def test_images_know_their_sample(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    image = IndexedReader(make_set(tmp_path / "set", 2)).sample(1)[1]
    assert isinstance(image, ImagePiece)
    assert image.name == f"the image of {tmp_path}/set sample 1"


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".idx", lambda b: b[:20], r"set\.idx is cut off"),
        (".idx", lambda b: b"", r"set\.idx is empty"),
        (".idx", lambda b: b[:-1], r"set\.idx is cut off or too long"),
        (".idx", lambda b: b + b"x", r"set\.idx is cut off or too long"),
        (".idx", lambda b: flip(b, 0), r"set\.idx is not a Megatron index"),
        (".idx", lambda b: flip(b, 9), r"set\.idx is not a Megatron index"),
        (".idx", lambda b: flip(b, 17), r"set\.idx does not belong to the manifest"),
        (".idx", lambda b: flip(b, 26), r"set\.idx does not belong to the manifest"),
        (".idx", lambda b: flip(b, 40), r"set\.idx is damaged: its checksum differs"),
        (".bin", lambda b: b[:-1], r"set\.bin holds [\d,]+ bytes, but its manifest says"),
        (".bin", lambda b: b"", r"set\.bin is empty"),
        (".manifest.json", lambda b: b[:9], r"set\.manifest\.json is damaged"),
        (
            ".manifest.json",
            lambda b: b"[]",
            r"manifest\.json is damaged: it must be an object",
        ),
        (
            ".manifest.json",
            lambda b: b"[" * 100_000,
            r"manifest\.json is damaged: it is not JSON: ",
        ),
        (
            ".manifest.json",
            lambda b: b.replace(b'"tokens": ', b'"tokens": -'),
            "tokens must be at least 0",
        ),
        (".manifest.json", lambda b: b.replace(b'"samples"', b'"sample"'), "damaged: samples"),
        (
            ".manifest.json",
            lambda b: b.replace(b'"format_version": 3', b'"format_version": 4'),
            "has format version 4, but this vila_mc reads 1 to 3",
        ),
    ],
)
def test_damage_is_found_on_opening(
    tmp_path: Path,
    make_set: Callable[..., Path],
    suffix: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    file = Path(f"{make_set(tmp_path / 'set', 2)}{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        IndexedReader(tmp_path / "set")


@pytest.mark.parametrize("suffix", [".idx", ".bin", ".manifest.json"])
def test_missing_and_unreadable_files(
    tmp_path: Path, make_set: Callable[..., Path], suffix: str
) -> None:
    file = Path(f"{make_set(tmp_path / 'set', 2)}{suffix}")
    file.unlink()
    with pytest.raises(DataError, match=f"there is no .*{suffix}"):
        IndexedReader(tmp_path / "set")
    file.mkdir()
    with pytest.raises(DataError, match=rf"{suffix} .*(cannot be read|is empty|is a folder)"):
        IndexedReader(tmp_path / "set")


def test_set_that_never_was(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no dataset .*none"):
        IndexedReader(tmp_path / "none")


def test_sets_of_version_1_have_no_checksum_of_the_data(
    tmp_path: Path, make_set: Callable[..., Path]
) -> None:
    prefix = make_set(tmp_path / "set", 2)
    assert IndexedReader(prefix).manifest.bin_sha256 == sha256_of(Path(f"{prefix}.bin"))
    assert IndexedReader(make_old(prefix, 1)).manifest.bin_sha256 is None


def test_unknown_modes(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    prefix = make_set(tmp_path / "set", 1)
    index, facts = Path(f"{prefix}.idx"), Path(f"{prefix}.manifest.json")
    content = index.read_bytes()
    index.write_bytes(content[:-9] + b"\x07" + content[-8:])  # behind it the sides of one image
    values = json.loads(facts.read_text()) | {"idx_sha256": sha256_of(index)}
    facts.write_text(json.dumps(values))
    with pytest.raises(DataError, match="pieces of a kind"):
        IndexedReader(prefix)


def test_manifest_says_what_is_inside(
    tmp_path: Path, tokenizer: Tokenizer, make_set: Callable[..., Path]
) -> None:
    facts = read_manifest(make_set(tmp_path / "a.b", 3))
    assert (facts.kind, facts.samples, facts.images, facts.tokens) == ("multimodal", 3, 3, 15)
    assert (facts.vocab_size, facts.tokenizer_sha256) == (400, tokenizer.fingerprint())
    assert facts.bin_bytes == (tmp_path / "a.b.bin").stat().st_size

"""Indexed datasets: round trips, Megatron-Core's reader and writer, every kind of damage."""

import contextlib
import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vila_mc.data import indexed_pack, indexed_writer, manifest
from vila_mc.data.indexed_format import StoredImage, StoredPiece, StoredText, text_dtype
from vila_mc.data.indexed_reader import IndexedReader
from vila_mc.data.indexed_writer import IndexedWriter, complete_moves
from vila_mc.data.manifest import read_manifest
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import DataError, SetupError
from vila_mc.flow import EncodedImage, EncodedSample, EncodedText

IDS = st.lists(st.integers(0, 399), max_size=9).map(tuple)
TEXTS = st.builds(EncodedText, IDS, st.booleans())
IMAGES = st.builds(EncodedImage, st.binary(max_size=9), st.just(1), st.just(1))
SAMPLES = st.lists(
    st.lists(st.one_of(TEXTS, IMAGES), min_size=1, max_size=4), min_size=1, max_size=6
)
REUSED_FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(
    prefix: Path, kind: manifest.SetKind, tokenizer: Tokenizer, samples: list[EncodedSample]
) -> Path:
    with IndexedWriter(prefix, kind, tokenizer) as writer:
        for sample in samples:
            writer.add(sample)
        writer.finish({"kind": "test"})
    return prefix


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"set.{len(list(tmp_path.iterdir()))}"


def unpack(piece: StoredPiece) -> tuple[object, ...]:
    if isinstance(piece, StoredText):
        return tuple(piece.ids.tolist()), piece.is_trained
    return (piece.data.tobytes(),)


def packed(piece: EncodedText | EncodedImage) -> tuple[object, ...]:
    if isinstance(piece, EncodedText):
        return piece.ids, piece.is_trained
    return (piece.data + bytes(-len(piece.data) % 4),)


@REUSED_FIXTURES
@given(pieces=SAMPLES)
def test_multimodal_round_trip(
    tmp_path: Path, tokenizer: Tokenizer, pieces: list[list[EncodedText | EncodedImage]]
) -> None:
    pieces = [[*sample, EncodedText((1,), False)] for sample in pieces]  # never an empty .bin
    samples = [EncodedSample(tuple(sample)) for sample in pieces]
    reader = IndexedReader(write(fresh(tmp_path), "multimodal", tokenizer, samples))
    assert len(reader) == len(samples)
    for index, sample in enumerate(pieces):
        assert [unpack(piece) for piece in reader.sample(index)] == [packed(p) for p in sample]
    texts = [[len(p.ids) for p in sample if isinstance(p, EncodedText)] for sample in pieces]
    images = [[1 for p in sample if isinstance(p, EncodedImage)] for sample in pieces]
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
    samples = [EncodedSample((EncodedText(ids, True),)) for ids in documents]
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
    monkeypatch.setattr(indexed_writer, "_CHUNK", 2)
    cut = make_set(tmp_path / "cut", 5)
    assert Path(f"{whole}.idx").read_bytes() == Path(f"{cut}.idx").read_bytes()


def test_nothing_is_left_of_an_unfinished_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer,
    ):
        writer.add(EncodedSample((EncodedText((1,), True),)))
        assert os.listdir(tmp_path) == ["set.partial"]
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_manifest_comes_last(
    tmp_path: Path, make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, target: (renamed.append(target), replace(self, target))[1],
    )
    make_set(tmp_path / "set", 1)
    placed = [target.name for target in renamed if target.parent == tmp_path]
    assert placed == ["set.bin", "set.idx", "set.manifest.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(placed)


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ONE = EncodedSample((EncodedText((1,), True),))


def test_disk_that_fills_up_while_adding(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        full = type("Full", (), {"write": refuse, "close": refuse})()
        monkeypatch.setitem(writer._files, ".bin", full)
        with pytest.raises(SetupError, match=r"no space left for .*set.*Free some space"):
            writer.add(ONE)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_up_at_the_end(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(ONE)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SetupError, match=r"no space left for .*set.*Free some space"):
            writer.finish({})
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="file"):
        IndexedWriter(tmp_path / "file" / "set", "text", tokenizer)


def test_finished_set_is_never_overwritten(
    tmp_path: Path, tokenizer: Tokenizer, make_set: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"exists already\. Delete"):
        IndexedWriter(make_set(tmp_path / "set", 1), "text", tokenizer)


def test_second_run_on_the_same_prefix(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as first:
        first.add(ONE)
        with pytest.raises(DataError, match="another run is writing"):
            IndexedWriter(tmp_path / "set", "multimodal", tokenizer)
        assert first.finish({}).samples == 1


def test_leftovers_of_a_crash_are_overwritten(
    tmp_path: Path, make_set: Callable[..., Path]
) -> None:
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "set.bin").write_bytes(b"half")
    (tmp_path / "set.bin").write_bytes(b"half")
    with pytest.raises(DataError, match="set is incomplete"):
        IndexedReader(tmp_path / "set")
    assert len(IndexedReader(make_set(tmp_path / "set", 2))) == 2


def test_memory_does_not_grow_with_the_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    count = 20_000
    documents = indexed_pack.Packed(
        data=bytes(2 * count),
        lengths=np.ones(count, np.int32),
        modes=np.empty(0, np.int8),
        pieces=np.ones(count, np.int64),
        tokens=count,
        images=0,
    )
    with IndexedWriter(tmp_path / "set", "text", tokenizer) as writer:
        tracemalloc.start()
        for _ in range(100):
            writer.append(documents)
        _, while_adding = tracemalloc.get_traced_memory()
        writer.finish({})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "set.idx").stat().st_size > 40e6
    assert while_adding < 2e6
    assert peak < 40e6  # a few chunks of a million entries


def test_text_set_refuses_images(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(DataError, match="a text-only set takes no images"),
    ):
        writer.add(EncodedSample((EncodedImage(b"x", 1, 1),)))


def test_empty_sample_is_our_fault(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(ValueError, match="without pieces"),
    ):
        writer.add(EncodedSample(()))


def test_piece_that_is_too_long(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed_pack, "LONGEST_PIECE", 3)
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(DataError, match="a piece of 4 elements is too long"),
    ):
        writer.add(EncodedSample((EncodedText((1, 2, 3, 4), True),)))


def test_samples_outside_the_set(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    reader = IndexedReader(make_set(tmp_path / "set", 2))
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"sample {index} of 2"):
            reader.sample(index)


def test_images_know_their_sample(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    image = IndexedReader(make_set(tmp_path / "set", 2)).sample(1)[1]
    assert isinstance(image, StoredImage)
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
        (".manifest.json", lambda b: b"[]", "has format version None"),
        (".manifest.json", lambda b: b.replace(b'"samples"', b'"sample"'), "damaged: samples"),
        (
            ".manifest.json",
            lambda b: b.replace(b'"format_version": 2', b'"format_version": 3'),
            "has format version 3, but this vila_mc reads 1 to 2",
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
    with pytest.raises(DataError, match=rf"{suffix} .*(cannot be read|is empty)"):
        IndexedReader(tmp_path / "set")


def test_set_that_never_was(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no dataset .*none"):
        IndexedReader(tmp_path / "none")


def test_sets_of_version_1_have_no_checksum_of_the_data(
    tmp_path: Path, make_set: Callable[..., Path]
) -> None:
    prefix = make_set(tmp_path / "set", 2)
    file = Path(f"{prefix}.manifest.json")
    facts = json.loads(file.read_text())
    assert facts.pop("bin_sha256") == manifest.sha256_of(Path(f"{prefix}.bin"))
    file.write_text(json.dumps(facts | {"format_version": 1}))
    assert IndexedReader(prefix).manifest.bin_sha256 is None


def numbered(number: int) -> EncodedSample:
    image = EncodedImage(bytes([number]) * number, 1, 1)
    return EncodedSample((EncodedText((1, number), False), image, EncodedText((2,), True)))


@pytest.mark.parametrize("written", [0, 1, 4])
def test_killed_writer_goes_on_from_its_commit(
    tmp_path: Path, tokenizer: Tokenizer, written: int
) -> None:
    whole = write(tmp_path / "whole", "multimodal", tokenizer, [numbered(n) for n in range(9)])
    prefix = tmp_path / "set"
    with IndexedWriter(prefix, "multimodal", tokenizer) as writer:
        for number in range(written):
            writer.add(numbered(number))
        writer.reject("before")
        writer.commit({"next": written})
        writer.add(numbered(99))  # lost, for nothing says that it is whole
        writer.reject("lost")
    assert os.listdir(tmp_path / "set.partial")
    with pytest.raises(DataError, match=r"unfinished run in .*set\.partial\. Add --resume"):
        IndexedWriter(prefix, "multimodal", tokenizer)
    with IndexedWriter(prefix, "multimodal", tokenizer, resume=True) as writer:
        assert writer.committed == {"next": written}
        for number in range(written, 9):
            writer.add(numbered(number))
        writer.finish({"kind": "test"})
    for suffix in (".bin", ".idx", ".manifest.json"):
        assert Path(f"{prefix}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes()
    assert Path(f"{prefix}.rejected.jsonl").read_text() == "before\n"
    assert not (tmp_path / "set.partial").exists()


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_finish_that_is_killed_between_its_moves(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    prefix = tmp_path / "set"
    assert complete_moves(prefix) is None
    done: list[Path] = []
    replace = Path.replace

    def dying(self: Path, target: Path) -> None:
        if target.parent == tmp_path:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        replace(self, target)

    with (
        contextlib.suppress(KeyboardInterrupt),
        IndexedWriter(prefix, "multimodal", tokenizer) as writer,
    ):
        writer.add(ONE)
        writer.reject("bad")
        writer.commit({})
        monkeypatch.setattr(Path, "replace", dying)
        writer.finish({})
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"incomplete|there is no dataset"):
        IndexedReader(prefix)
    made = complete_moves(prefix)
    assert made is not None
    assert len(IndexedReader(prefix)) == made.samples == 1
    assert sorted(os.listdir(tmp_path)) == [
        f"set{suffix}" for suffix in (".bin", ".idx", ".manifest.json", ".rejected.jsonl")
    ]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "set.bin").write_bytes(b""), r"set\.bin is too short"),
        (lambda folder: (folder / "progress.json").write_text("{"), "progress.json is damaged"),
    ],
)
def test_damaged_progress_is_not_resumed(
    tmp_path: Path, tokenizer: Tokenizer, damage: Callable[[Path], None], why: str
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(ONE)
        writer.commit({})
    damage(tmp_path / "set.partial")
    with pytest.raises(DataError, match=f"cannot be resumed: {why}"):
        IndexedWriter(tmp_path / "set", "multimodal", tokenizer, resume=True)


def test_unknown_modes(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    prefix = make_set(tmp_path / "set", 1)
    index, facts = Path(f"{prefix}.idx"), Path(f"{prefix}.manifest.json")
    index.write_bytes(index.read_bytes()[:-1] + b"\x07")
    values = json.loads(facts.read_text()) | {"idx_sha256": manifest.sha256_of(index)}
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

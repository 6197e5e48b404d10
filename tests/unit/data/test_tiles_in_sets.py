"""Sets of pictures in tiles: everything that counts them from the index."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.old_sets import make_old
from tests.support.pieces import text_piece
from tests.support.reference_tiles import reference_grid
from tests.support.tiles import MOST, SIDES, num_tiles, picture, with_newline
from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.batches.datasets import open_blend
from vila_mc.data.batches.loader import TrainingData
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.ingest.encode import ImagePolicy, encode_sample, encode_samples
from vila_mc.data.inspection.page import sample_page
from vila_mc.data.inspection.summary import summary_lines
from vila_mc.data.inspection.verify_dataset import verify
from vila_mc.data.tiles import Tiling
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.files import sha256_of
from vila_mc.flow import EncodedSample, ImagePiece, Microbatch, RawImage, RawSample


@pytest.fixture(scope="module")
def prefix(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    make_image: Callable[..., bytes],
) -> Path:
    """24 samples of no, one or two pictures of all ``SIDES``."""
    path = tmp_path_factory.mktemp("tiles") / "set"
    with IndexedWriter(path, "multimodal", tokenizer) as writer:
        for number in range(24):
            sizes = [SIDES[(number + k) % len(SIDES)] for k in range(number % 3)]
            images = [picture(make_image, size, number) for size in sizes]
            text = text_piece((9,) * (1 + number % 5) + (2,), True)
            writer.add(EncodedSample((text_piece((1, 8), False), *images, text)))
        writer.finish({})
    return path


def tiles_by_sample() -> list[int]:
    return [
        sum(num_tiles(*SIDES[(number + k) % len(SIDES)]) for k in range(number % 3))
        for number in range(24)
    ]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_tiles_are_counted_from_the_index(
    prefix: Path, tmp_path: Path, cut: ModelConfig, version: int
) -> None:
    """Sets of earlier versions have no sides: the headers of their images are read once."""
    for suffix in (".bin", ".idx", ".manifest.json"):
        (tmp_path / f"set{suffix}").write_bytes(Path(f"{prefix}{suffix}").read_bytes())
    path = tmp_path / "set" if version == 3 else make_old(tmp_path / "set", version)
    reader = IndexedReader(path, Tiling.of(cut.vision))
    assert reader.tile_counts().tolist() == tiles_by_sample()
    order = np.array([5, 23, 0, 1, 8])
    tokens, tiles = reader.sizes(order)
    assert tiles.tolist() == [tiles_by_sample()[number] for number in order]
    plain = IndexedReader(path)
    assert plain.tile_counts().tolist() == plain.image_counts().tolist() == [0, 1, 2] * 8
    assert tokens.tolist() == plain.token_counts()[order].tolist()
    for number in range(24):
        of_sample = [p.sides for p in reader.sample(number) if isinstance(p, ImagePiece)]
        assert of_sample == [SIDES[(number + k) % len(SIDES)] for k in range(number % 3)]
    assert plain.sides.any() == (version == 3)


def test_a_newline_is_a_token_of_the_tokenizer(
    prefix: Path, tokenizer: Tokenizer, cut: ModelConfig
) -> None:
    """Models have more rows than their tokenizers have tokens, and nobody trained the others."""
    number = tokenizer.vocab_size
    data = DataConfig(blend=(BlendEntry(path=prefix),), tokenizer=tokenizer.path)
    model = replace(cut, language=replace(cut.language, vocab_size=number + 8))
    for newline in (number - 1, number):
        ends = replace(model, vision=replace(model.vision, tile_newline=newline))
        if newline < number:
            assert len(open_blend(data, ends)) == 1
        else:
            with pytest.raises(ConfigError, match=rf"newline is {number}, .* 0 to {number - 1}\."):
                open_blend(data, ends)


def test_an_old_set_with_an_image_that_is_none(
    prefix: Path, tmp_path: Path, tokenizer: Tokenizer, cut: ModelConfig
) -> None:
    """It counts as one tile, and training says what is wrong, or shows one colour in its place."""
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(EncodedSample((text_piece((1,), False), ImagePiece(b"junk", "an image"))))
        writer.finish({})
    reader = IndexedReader(tmp_path / "set", Tiling.of(cut.vision))
    assert reader.tile_counts().tolist() == [1]
    rows = [[reader.sample(0)]]
    with pytest.raises(DataError, match="set sample 0 is not an image"):
        collate(rows, cut, 12, needs_images=True)
    assert len(collate(rows, cut, 12, needs_images=True, on_bad_image="substitute").images) == 1


def test_many_pieces(
    tmp_path: Path, tokenizer: Tokenizer, make_image: Callable[..., bytes]
) -> None:
    """More than one block of pieces: each image is found by its piece."""
    sizes = [(56 * (1 + n % 5), 56) for n in range(300)]
    image = make_image()
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        for n, size in enumerate(sizes):
            texts = [text_piece((1,), True)] * (n % 4)
            writer.add(EncodedSample((*texts, ImagePiece(image, "x", size))))
        writer.finish({})
    reader = IndexedReader(tmp_path / "set", Tiling(56, 5, False))
    expected = [1 + n % 5 for n in range(300)]
    assert reader.tile_counts().tolist() == expected
    assert reader.sizes(np.arange(300))[1].tolist() == expected
    assert [reader.sample(n)[-1].sides for n in range(300)] == sizes


def opened(
    prefix: Path, tokenizer: Tokenizer, model: ModelConfig, rank: int, size: int, **options: object
) -> TrainingData:
    values = dict(sequence_length=90, packing=True, workers=0) | options
    data = DataConfig(blend=(BlendEntry(path=prefix),), tokenizer=tokenizer.path, **values)
    return TrainingData(
        data,
        model,
        micro_batch=2,
        global_batch=8,
        data_rank=rank,
        data_size=size,
        needs_images=rank == 0,
    )


@pytest.mark.parametrize("packing", [False, True])
def test_batches_are_packed_and_balanced_by_tiles(
    prefix: Path, tokenizer: Tokenizer, cut: ModelConfig, packing: bool
) -> None:
    model = with_newline(cut)
    shares: list[list[Microbatch]] = []
    for rank in range(2):
        with opened(prefix, tokenizer, model, rank, 2, packing=packing) as loader:
            shares.append(loader.step(3).microbatches)
            batch = loader._sampler.at(3)
    assert batch.images.tolist() == [tiles_by_sample()[n] for n in batch.samples]
    laid_out = sorted(n for share in shares for b in share for row in b.sample_lengths for n in row)
    assert laid_out == sorted(batch.lengths.tolist())
    assert np.bincount(batch.rows, batch.lengths, 8).max() <= 90
    tiles = [sum(len(b.image_starts) for b in share) for share in shares]
    assert sum(tiles) == batch.images.sum()
    assert max(tiles) <= 1.25 * np.mean(tiles)
    assert sum(len(b.images) for b in shares[0]) == tiles[0]
    assert not any(len(b.images) for b in shares[1])


def test_workers_have_room_for_the_tiles_of_full_rows(
    tmp_path: Path, tokenizer: Tokenizer, make_image: Callable[..., bytes], cut: ModelConfig
) -> None:
    """Rows full of tiles, which fill the slots of shared memory to their end."""
    most = picture(make_image, (336, 56))
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(EncodedSample((most, most, text_piece((2,), True))))
        writer.finish({})
    path = tmp_path / "set"
    model = with_newline(cut)
    with opened(path, tokenizer, model, 0, 1, workers=1, sequence_length=71) as loader:
        read = next(loader.iterate(0)).microbatches
    with opened(path, tokenizer, model, 0, 1, sequence_length=71) as loader:
        expected = loader.step(0).microbatches
    for one, other in zip(read, expected, strict=True):
        assert len(one.images) == 28
        np.testing.assert_array_equal(one.images.numpy(), other.images.numpy())
        np.testing.assert_array_equal(one.tokens.numpy(), other.tokens.numpy())


def test_cut_samples_count_tiles(prefix: Path, tokenizer: Tokenizer, cut: ModelConfig) -> None:
    tokens = IndexedReader(prefix).token_counts()
    longest = 40
    expected = int((tokens + 4 * np.array(tiles_by_sample()) > longest).sum())
    assert expected > 0
    with opened(prefix, tokenizer, cut, 0, 1, sequence_length=longest) as loader:
        assert loader.cut_samples() == [expected]


def damaged(prefix: Path, tmp_path: Path) -> Path:
    """The set with another height of its first image (60 x 20 pixels) and checksums that fit."""
    for suffix in (".bin", ".idx", ".manifest.json"):
        (tmp_path / f"set{suffix}").write_bytes(Path(f"{prefix}{suffix}").read_bytes())
    index, facts = tmp_path / "set.idx", tmp_path / "set.manifest.json"
    values = json.loads(facts.read_text())
    content = bytearray(index.read_bytes())
    at = len(content) - 8 * values["images"] + 4
    assert content[at] == 20
    content[at] = 120
    index.write_bytes(content)
    facts.write_text(json.dumps(values | {"idx_sha256": sha256_of(index)}))
    return tmp_path / "set"


def test_an_index_with_other_sides_than_the_image(
    prefix: Path, tmp_path: Path, tokenizer: Tokenizer, cut: ModelConfig
) -> None:
    path = damaged(prefix, tmp_path)
    said = "set sample 1 is 60 x 20 pixels, but 60 x 120 by the index"
    reader = IndexedReader(path, Tiling.of(cut.vision))
    rows = [[reader.sample(1)]]
    with pytest.raises(DataError, match=said):
        collate(rows, cut, 90, needs_images=True)
    batch = collate(rows, cut, 90, needs_images=True, on_bad_image="substitute")
    assert len(batch.images) == len(batch.image_starts) == num_tiles(60, 120)
    assert (batch.images == batch.images[:1, :, :1, :1]).all()
    assert said in batch.substitutes[0]
    (fault,) = verify(path).faults
    assert said in fault
    assert not verify(prefix).faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1] + b"\xff", "an image has a negative side"),
        (lambda content: content + bytes(8), "cut off or too long"),
        (lambda content: content[:-8], "cut off or too long"),
    ],
)
def test_sides_are_believed_in_nothing(
    prefix: Path, tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = damaged(prefix, tmp_path)
    index, facts = Path(f"{path}.idx"), Path(f"{path}.manifest.json")
    index.write_bytes(change(index.read_bytes()))
    values = json.loads(facts.read_text()) | {"idx_sha256": sha256_of(index)}
    facts.write_text(json.dumps(values))
    with pytest.raises(DataError, match=said):
        IndexedReader(path)


def test_inspection_counts_tiles(prefix: Path, tokenizer: Tokenizer, cut: ModelConfig) -> None:
    reader = IndexedReader(prefix, Tiling.of(cut.vision))
    lines = "\n".join(summary_lines(reader, cut.tile_positions(), "tiles.yaml"))
    assert f"tiles      {sum(tiles_by_sample())}; a sample" in lines
    assert "positions  of a row, 4 for a tile (tiles.yaml)" in lines
    page = sample_page(reader, 5, tokenizer, tile_positions=4)
    tiles = tiles_by_sample()[5]
    assert f"2 images, cut into {tiles} tiles of 4 positions each" in page
    total = int(reader.token_counts()[5]) + 4 * tiles
    assert f"{total} positions of a row" in page
    columns, rows = reference_grid(*SIDES[5], 56, MOST)
    assert f"cut into {columns} x {rows} tiles and a thumbnail" in page


@pytest.mark.parametrize("resize", [None, 50])
def test_preprocessing_stores_the_sides(
    make_image: Callable[..., bytes], tokenizer: Tokenizer, resize: int | None
) -> None:
    sample = RawSample((RawImage(make_image(200, 100), "x"),), 1)
    (encoded,) = encode_samples([sample], tokenizer, ImagePolicy(resize=resize))
    assert isinstance(encoded, EncodedSample)
    assert encoded.pieces[-1].sides == ((200, 100) if resize is None else (100, 50))
    checked = RawSample((RawImage(make_image(200, 100), "x", sides=(200, 100)),), 1)
    assert encode_sample(checked, tokenizer, 1).pieces[-1].sides == (200, 100)

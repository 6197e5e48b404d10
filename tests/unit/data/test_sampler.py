"""Global batches: a stretch of the stream each, whatever was read before."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pieces import text_piece
from vila_mc.data.batches import sampler as sampler_module
from vila_mc.data.batches.blend import Blend
from vila_mc.data.batches.sampler import Sampler
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.flow import EncodedSample


class FakeReader:
    """An index without files."""

    def __init__(self, size: int, seed: int) -> None:
        choose = np.random.default_rng(seed)
        self.tokens, self.images = choose.integers(1, 90, size), choose.integers(0, 3, size)

    def sizes(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[samples], self.images[samples]


READERS = [FakeReader(50, 1), FakeReader(30, 2)]


def sampler(num_rows: int = 6, packing: bool = True) -> Sampler:
    return Sampler(
        Blend.by_weights([2, 1], [50, 30], 5),
        READERS,  # type: ignore[arg-type]
        num_rows=num_rows,
        sequence_length=100,
        tile_positions=4,
        packing=packing,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.booleans())
def test_a_batch_is_a_stretch_of_the_stream(position: int, num_rows: int, packing: bool) -> None:
    batch = sampler(num_rows, packing).at(position)
    datasets, samples = Blend.by_weights([2, 1], [50, 30], 5).choose(position, len(batch.samples))
    np.testing.assert_array_equal(batch.datasets, datasets)
    np.testing.assert_array_equal(batch.samples, samples)
    load = np.bincount(batch.rows, batch.lengths, num_rows)
    assert load.max() <= 100
    assert load.min() > 0
    if not packing:
        assert batch.rows.tolist() == list(range(num_rows))


@pytest.mark.parametrize("packing", [False, True])
def test_images_that_are_cut_off_are_not_counted(packing: bool) -> None:
    """100 images of 4 positions in a row of 100: 25 are left, and rows are dealt by them."""
    reader = FakeReader(8, 3)
    reader.tokens[:], reader.images[:] = 3, [100, 0, 30, 25, 100, 1, 24, 2]
    cut = Sampler(
        Blend.by_weights([1], [8], 5),
        [reader],  # type: ignore[list-item]
        num_rows=8,
        sequence_length=100,
        tile_positions=4,
        packing=packing,
        end=8,
    )
    batch = cut.at(0)
    expected = np.minimum(reader.images[batch.samples], 25)
    np.testing.assert_array_equal(batch.images, expected)
    assert batch.costs()[:, 0].max() == 25


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3])), min_size=1, max_size=4))
def test_interruptions_leave_no_trace(parts: list[tuple[int, int]]) -> None:
    """Each part of a run is another process with other ranks; the batches are one sequence."""
    unbroken, position = sampler(), 0
    for num_steps, ranks in parts:
        resumed = sampler()
        for _ in range(num_steps):
            expected, found = unbroken.at(position), resumed.at(position)
            shares = [found.share(rank, ranks, 2 if ranks % 2 else 1) for rank in range(ranks)]
            dealt = sorted(
                draw for share in shares for micro in share for row in micro for draw in row
            )
            pairs = zip(expected.datasets.tolist(), expected.samples.tolist(), strict=True)
            assert dealt == sorted(pairs)
            position += len(found.samples)


def test_what_was_drawn_ahead_changes_nothing() -> None:
    wanders = sampler()
    for position in (0, 40, 41, 20_000, 12, 0, 9000):
        found, expected = wanders.at(position), sampler().at(position)
        np.testing.assert_array_equal(found.samples, expected.samples)
        np.testing.assert_array_equal(found.rows, expected.rows)


def test_long_samples_count_as_one_row() -> None:
    batch = Sampler(
        Blend.by_weights([1], [50], 5),
        READERS[:1],  # type: ignore[arg-type]
        num_rows=3,
        sequence_length=20,
        tile_positions=4,
        packing=True,
    ).at(0)
    assert batch.lengths.max() == 20


def test_costs_are_images_and_squares() -> None:
    batch = sampler().at(0)
    for row, (images, squares) in enumerate(batch.costs()):
        here = batch.rows == row
        assert images == batch.images[here].sum()
        assert squares == (batch.lengths[here] ** 2).sum()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 3], [2]])
def test_sizes_are_read_from_the_index(
    tmp_path: Path, make_set: Callable[..., Path], order: list[int]
) -> None:
    reader = IndexedReader(make_set(tmp_path / "set", 4))
    tokens, images = reader.sizes(np.asarray(order))
    assert tokens.tolist() == reader.token_counts()[order].tolist()
    assert images.tolist() == reader.image_counts()[order].tolist()


def test_sizes_of_a_text_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "text", tokenizer) as writer:
        for length in (3, 1, 7):
            writer.add(EncodedSample((text_piece((5,) * length, is_trained=True),)))
        writer.finish({})
    tokens, images = IndexedReader(tmp_path / "set").sizes(np.asarray([2, 0]))
    assert (tokens.tolist(), images.tolist()) == ([7, 3], [0, 0])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("passes", [0.5, 1, 2.5])
def test_passes_are_counted_as_steps_read_them(
    passes: float, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Sampler:
        return Sampler(
            Blend.by_epochs([1, 2], [50, 30], 5),
            READERS,  # type: ignore[arg-type]
            num_rows=6,
            sequence_length=100,
            tile_positions=4,
            packing=packing,
        )

    found = made().passes(passes)
    assert found is not None
    assert (found.samples, found.is_exact) == (110, True)
    position = steps = 0
    while position < 110 * passes:
        position, steps = position + len(made().at(position).samples), steps + 1
    assert steps - 1 < found.steps <= steps
    monkeypatch.setattr(sampler_module, "_MOST_PACKED", 30)
    estimate = made().passes(passes)
    assert estimate is not None
    assert estimate.is_exact is not packing
    assert estimate.steps == pytest.approx(found.steps, rel=0.3)


def test_a_blend_by_weights_has_no_passes() -> None:
    assert sampler().passes() is None

"""One global order, however it is divided, resumed or read ahead."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate, chain, islice
from pathlib import Path

import pytest

from tests.unit.data.two_sets import BATCH, names, opened
from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import LanguageConfig, ModelConfig
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import ConfigError, DataError


@pytest.mark.parametrize("packing", [False, True])
def test_batches_do_not_depend_on_how_they_are_divided(
    data: DataConfig, model: ModelConfig, packing: bool
) -> None:
    data = replace(data, packing=packing, sequence_length=40)
    whole = opened(data, model).step(24)
    expected = sorted(names(whole.microbatches))
    assert len(set(expected)) > 8
    assert whole.samples_seen == 24 + (BATCH * (40 // 9) if packing else BATCH)
    for size, micro in [(1, 3), (2, 1), (2, 6), (3, 2), (4, 3), (12, 1)]:
        ranks = [opened(data, model, rank=rank, size=size, micro=micro) for rank in range(size)]
        found = [rank.step(24) for rank in ranks]
        assert sorted(names(chain(*(step.microbatches for step in found)))) == expected
        assert {len(step.microbatches) for step in found} == {BATCH // size // micro}
        assert {step.samples_seen for step in found} == {whole.samples_seen}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_validation_is_all_of_its_data_once_and_the_same_every_time(
    data: DataConfig, model: ModelConfig, packing: bool, workers: int
) -> None:
    """Also between two steps, which go on as if it had not been."""
    seen_before = 0
    large, small = data.blend
    part = BlendEntry(path=large.path, epochs=0.5)
    entries = (BlendEntry(path=small.path), part)
    data = replace(data, packing=packing, sequence_length=30, workers=workers)
    watched = replace(data, validation=entries)
    expected: list[int] | None = None
    for size, micro in [(1, 4), (2, 2), (3, 1)]:
        with ExitStack() as stack:
            ranks = [
                stack.enter_context(opened(watched, model, rank=rank, size=size, micro=micro))
                for rank in range(size)
            ]
            plain = stack.enter_context(opened(replace(data, workers=0), model))
            steps = [rank.iterate(0) for rank in ranks]
            for turn in range(3):
                passes = [list(rank.validation()) for rank in ranks]
                assert len({len(each) for each in passes}) == 1
                read = [batch for rank in passes for each in rank for batch in each]
                assert {batch.tokens.size(0) for batch in read} == {micro}
                found = sorted(names(read))
                assert [sum(name // 100 == which for name in found) for which in (1, 2)] == [10, 5]
                assert expected is None or found == expected
                expected = found
                owners = {entry for batch in read for row in batch.entries for entry in row}
                assert owners == {0, 1}
                shares = [next(each) for each in steps]
                batches = chain(*(share.microbatches for share in shares))
                seen = plain.step(seen_before if turn else 0)
                assert sorted(names(batches)) == sorted(names(seen.microbatches))
                seen_before = seen.samples_seen


LAYOUTS = [(1, 4, 0), (3, 2, 2), (2, 1, 1), (12, 1, 0)]


@pytest.mark.parametrize("packing", [False, True])
def test_interruptions_neither_repeat_nor_drop_a_sample(
    data: DataConfig, model: ModelConfig, packing: bool
) -> None:
    """Stopped three times and gone on at another layout, with other workers and micro-batches."""
    data = replace(data, packing=packing, sequence_length=30)
    with opened(data, model) as unbroken:
        expected, samples_seen = [], 0
        for step in islice(unbroken.iterate(0), 8):
            expected.append((sorted(names(step.microbatches)), step.samples_seen))
    found = []
    for size, micro, workers in LAYOUTS:
        with ExitStack() as stack:
            ranks = [
                stack.enter_context(
                    opened(replace(data, workers=workers), model, rank=rank, size=size, micro=micro)
                )
                for rank in range(size)
            ]
            steps = [rank.iterate(samples_seen) for rank in ranks]
            for _ in range(2):
                shares = [next(each) for each in steps]
                samples_seen = shares[0].samples_seen
                batches = chain(*(share.microbatches for share in shares))
                found.append((sorted(names(batches)), samples_seen))
    assert found == expected


@pytest.mark.parametrize("workers", [0, 3])
def test_iterate_goes_on_from_any_position(
    data: DataConfig, model: ModelConfig, workers: int
) -> None:
    straight = opened(data, model, micro=4)
    with opened(replace(data, workers=workers), model, micro=4) as resumed:
        for turn, step in enumerate(islice(resumed.iterate(5), 4)):
            expected = straight.step(5 + turn * BATCH)
            assert names(step.microbatches) == names(expected.microbatches)


@pytest.mark.parametrize("packing", [False, True])
def test_positions_know_their_entry(data: DataConfig, model: ModelConfig, packing: bool) -> None:
    data = replace(data, packing=packing, sequence_length=40)
    for batch in opened(data, model, micro=2).step(0).microbatches:
        owners = batch.entry_of_positions()
        assert int((owners >= 0).sum()) == batch.filled_positions()
        for row, (lengths, entries) in enumerate(
            zip(batch.sample_lengths, batch.entries, strict=True)
        ):
            ends = list(accumulate(lengths))
            named = [
                int(batch.tokens[row, e - n + 6]) >= 200 for n, e in zip(lengths, ends, strict=True)
            ]
            assert [bool(entry) for entry in entries] == named
            assert [int(owners[row, end - 1]) for end in ends] == list(entries)


def test_shares_of_the_blend(data: DataConfig, model: ModelConfig) -> None:
    one = opened(data, model)
    drawn = [name for start in range(0, 240, BATCH) for name in names(one.step(start).microbatches)]
    assert abs(sum(name >= 200 for name in drawn) - 60) <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_no_longer_decodes_names_dataset_and_sample(
    tmp_path: Path,
    make_set: Callable[..., Path],
    data: DataConfig,
    model: ModelConfig,
    workers: int,
) -> None:
    prefix = make_set(tmp_path / "broken", 1)
    file = Path(f"{prefix}.bin")
    content = file.read_bytes()
    file.write_bytes(content[:8] + bytes(40) + content[48:])
    broken = replace(data, blend=(BlendEntry(path=prefix),), workers=workers)
    with opened(broken, model) as loader, pytest.raises(DataError, match="broken sample 0"):
        next(loader.iterate(0))
    broken = replace(broken, on_bad_image="substitute")
    with opened(broken, model, micro=2) as loader:
        first = next(loader.iterate(0)).microbatches[0]
    assert first.image_starts.tolist() == [[0, 2], [1, 2]]
    assert first.images[0, :, 5, 5].tolist() == [122, 116, 104]  # CLIP's mean colour
    assert len(first.substitutes) == 2
    assert "broken sample 0" in first.substitutes[0]


def test_samples_that_are_cut_are_counted(data: DataConfig, model: ModelConfig) -> None:
    with opened(data, model) as training_data:
        lengths = [
            reader.token_counts() + model.visual_tokens() * reader.image_counts()
            for reader in training_data.readers
        ]
        assert training_data.cut_samples() == [0, 0]
    shorter = replace(data, sequence_length=int(lengths[0].max()) - 1)
    with opened(shorter, model) as training_data:
        expected = [int((each > shorter.sequence_length).sum()) for each in lengths]
        assert training_data.cut_samples() == expected
        assert sum(expected) > 0


def test_batch_that_does_not_divide(data: DataConfig, model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"train.global_batch 12 .* 5 x 1"):
        opened(data, model, micro=5)


def test_settings_that_are_missing(data: DataConfig, model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.blend is empty"):
        opened(DataConfig(tokenizer=data.tokenizer), model)
    with pytest.raises(ConfigError, match=r"data\.tokenizer is not set"):
        opened(DataConfig(blend=data.blend), model)


def test_model_with_another_vocabulary(data: DataConfig, model: ModelConfig) -> None:
    def with_vocabulary(size: int) -> ModelConfig:
        language = LanguageConfig(width=16, ffn=32, heads=2, kv_heads=2, vocab_size=size)
        return ModelConfig(vision=model.vision, language=language)

    with pytest.raises(DataError, match=r"has 400 tokens, but model\.language\.vocab_size is 399"):
        opened(data, with_vocabulary(399))
    opened(data, with_vocabulary(500))  # rows that no token uses do no harm


def test_set_of_another_tokenizer(tmp_path: Path, data: DataConfig, model: ModelConfig) -> None:
    other = tmp_path / "other.model"
    train_tokenizer(
        [f"some other words {n} {chr(97 + n % 26) * 9}" for n in range(400)], other, 400
    )
    with pytest.raises(DataError, match=r"large was made with another tokenizer .* Preprocess"):
        opened(replace(data, tokenizer=other), model)

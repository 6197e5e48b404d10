"""One global order, however it is divided, resumed or read ahead."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import accumulate, chain, islice
from pathlib import Path

import psutil
import pytest
import torch

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import LanguageConfig, ModelConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.data.batches.workers import Workers
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import ConfigError, DataError, SetupError
from vila_mc.flow import Microbatch
from vila_mc.processes import STOP_SIGNALS

BATCH = 12


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], tokenizer_path: Path
) -> DataConfig:
    """Two sets; the third token of each sample tells which one it is."""
    folder = tmp_path_factory.mktemp("sets")
    entries = (
        BlendEntry(path=make_set(folder / "large", 20, first_id=100), weight=3),
        BlendEntry(path=make_set(folder / "small", 5, first_id=200), weight=1),
    )
    return DataConfig(blend=entries, tokenizer=tokenizer_path, sequence_length=16, workers=0)


def opened(
    data: DataConfig, model: ModelConfig, *, rank: int = 0, size: int = 1, micro: int = 1
) -> TrainingData:
    return TrainingData(
        data,
        model,
        micro_batch=micro,
        global_batch=BATCH,
        data_rank=rank,
        data_size=size,
        needs_images=rank == 0,
    )


def names(microbatches: Iterable[Microbatch]) -> list[int]:
    """The token of each sample that is its own (after BOS, a prompt token and 4 visual tokens)."""
    return [
        int(batch.tokens[row, end - length + 6])
        for batch in microbatches
        for row, lengths in enumerate(batch.sample_lengths)
        for length, end in zip(lengths, accumulate(lengths), strict=True)
    ]


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


TENSORS = ("tokens", "labels", "images", "image_starts")


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_microbatches(
    data: DataConfig, model: ModelConfig, packing: bool, workers: int
) -> None:
    data = replace(data, packing=packing, sequence_length=40)
    straight = list(islice(opened(data, model, micro=2).iterate(5), 3))
    with opened(replace(data, workers=workers), model, micro=2) as loader:
        ahead = list(islice(loader.iterate(5), 3))
    assert [step.samples_seen for step in ahead] == [step.samples_seen for step in straight]
    for one, other in zip(
        chain(*(step.microbatches for step in ahead)),
        chain(*(step.microbatches for step in straight)),
        strict=True,
    ):
        for field in fields(Microbatch):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(mine, theirs) if field.name in TENSORS else mine == theirs
        assert one.images.shape[1:] == (3, 56, 56)


def test_reading_ahead_is_bounded(
    data: DataConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[object] = []
    with opened(replace(data, workers=2), model, micro=4) as loader:
        request = Workers.request
        monkeypatch.setattr(
            Workers,
            "request",
            lambda self, rows: (requested.append(rows), request(self, rows))[1],
        )
        next(loader.iterate(0))
    assert len(requested) == 3 - 1 + 3 + 2 * 2  # the last of the step was taken without a new one


def test_ranks_without_vision_read_no_images(data: DataConfig, model: ModelConfig) -> None:
    with opened(replace(data, workers=1), model, rank=1, size=2) as loader:
        batch = next(loader.iterate(0)).microbatches[0]
    assert batch.images.shape == (0, 3, 56, 56)
    assert batch.image_starts.tolist() == [[0, 2]]


def test_any_number_of_steps_may_be_held(data: DataConfig, model: ModelConfig) -> None:
    data = replace(data, sequence_length=40)
    with opened(replace(data, workers=2), model, micro=2) as loader:
        held = list(islice(loader.iterate(0), 12))  # slots: for two, and what is ahead
    straight = opened(data, model, micro=2)
    for number, step in enumerate(held):
        for one, other in zip(
            step.microbatches, straight.step(number * BATCH).microbatches, strict=True
        ):
            assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def test_pixels_stay_where_they_were_decoded(data: DataConfig, model: ModelConfig) -> None:
    """Who lets a step go when the next is there sees no copy."""
    with opened(replace(data, workers=2), model, micro=4) as loader:
        assert loader._workers is not None
        first = loader._workers._slots.view(0)
        in_slots = range(first.ctypes.data, first.ctypes.data + 13 * len(first))
        addresses = [
            batch.images.data_ptr()
            for step in islice(loader.iterate(0), 20)
            for batch in step.microbatches
        ]
    assert set(addresses) <= set(in_slots)
    assert len(set(addresses)) <= 13


def test_a_view_keeps_its_pixels(data: DataConfig, model: ModelConfig) -> None:
    with opened(replace(data, workers=1), model, micro=12) as loader:
        steps = loader.iterate(0)
        view = next(steps).microbatches[0].images[3:5, 0]
        before = view.clone()
        for _ in range(8):
            next(steps)
    assert torch.equal(view, before)


def test_reading_from_elsewhere_drops_what_was_ahead(data: DataConfig, model: ModelConfig) -> None:
    straight = opened(data, model, micro=4)
    with opened(replace(data, workers=2), model, micro=4) as loader:
        for start in (0, 7, 0, 40, 3, 9, 1):
            step = next(loader.iterate(start))
            assert names(step.microbatches) == names(straight.step(start).microbatches)


@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGKILL, "memory ran out"), (signal.SIGBUS, "a file that it had mapped was cut")],
)
def test_a_killed_worker_ends_the_run_and_says_so(
    number: int, cause: str, data: DataConfig, model: ModelConfig
) -> None:
    with opened(replace(data, workers=2), model) as loader:
        pids = loader.worker_pids()
        steps = loader.iterate(0)
        next(steps)
        os.kill(pids[1], number)
        said = rf"process 1 of data\.workers 2 was killed by SIG.*{cause}"
        with pytest.raises(SetupError, match=said):
            list(islice(steps, 10_000))  # a busy machine takes its time to end the process
        assert not any(map(psutil.pid_exists, pids))


def test_no_worker_is_left(data: DataConfig, model: ModelConfig) -> None:
    data = replace(data, workers=3)
    with opened(data, model) as closed:
        pids = closed.worker_pids()
        assert len(pids) == 3
    failed = opened(data, model)
    pids += failed.worker_pids()
    with pytest.raises(ZeroDivisionError), failed:
        print(1 // (len(next(failed.iterate(0)).microbatches) - BATCH))
    forgotten = opened(data, model)
    pids += forgotten.worker_pids()
    del forgotten
    assert not any(map(psutil.pid_exists, pids))


def test_requests_to_stop_are_not_for_workers(data: DataConfig, model: ModelConfig) -> None:
    with opened(replace(data, workers=1), model) as loader:
        next(loader.iterate(0))  # it has started
        for number in STOP_SIGNALS:
            os.kill(loader.worker_pids()[0], number)
        next(loader.iterate(0))


def test_workers_end_with_a_killed_parent(data: DataConfig, model: ModelConfig) -> None:
    told, tell = os.pipe()
    if (parent := os.fork()) == 0:
        loader = opened(replace(data, workers=2), model)
        next(loader.iterate(0))
        os.write(tell, json.dumps(loader.worker_pids()).encode())
        signal.pause()
    pids = json.loads(os.read(told, 100))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until = time.monotonic() + 10
    while any(map(_lives, pids)) and time.monotonic() < until:
        time.sleep(0.005)
    assert not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_faults_of_a_worker_keep_their_traceback(
    data: DataConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: TrainingData, *arguments: object) -> Microbatch:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(TrainingData, "_load", failing)
    told = pytest.raises(RuntimeError, match=r"in failing[^$]*ZeroDivisionError: planted")
    with opened(replace(data, workers=1), model) as loader, told:
        next(loader.iterate(0))


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

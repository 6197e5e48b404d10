"""Worker processes: the same microbatches as without, in shared memory, and none left behind."""

import json
import os
import signal
import time
from dataclasses import fields, replace
from itertools import chain, islice

import psutil
import pytest
import torch

from tests.unit.data.two_sets import BATCH, names, opened
from vila_mc.config.data import DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.data.batches.workers import Workers
from vila_mc.errors import SetupError
from vila_mc.flow import Microbatch
from vila_mc.processes import STOP_SIGNALS

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

"""Rows of real indices in a plan: what they hold, who waits for whom, and what is said of it."""

import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_data import write_dataset
from vila_mc.commands.plan_cluster import main
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.sampler import GlobalBatch
from vila_mc.planner.balance import balanced_layers
from vila_mc.planner.clock import Clock
from vila_mc.planner.constants import FITTED
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.known import Known
from vila_mc.planner.memory import rank_memory
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.passes import PassTimes
from vila_mc.planner.plan import plan_of
from vila_mc.planner.replay import Replay
from vila_mc.planner.saves import COPIED, saves_of
from vila_mc.planner.step import step_time, with_loading
from vila_mc.topology.hardware import GPUS
from vila_mc.topology.layout import Layout

A100 = GPUS["a100-80g"]


def batch(lengths: list[int], images: list[int], rows: list[int] | None = None) -> GlobalBatch:
    """Samples of these lengths and images, one to a row if nothing else is said."""
    count = len(lengths)
    where = np.arange(count) if rows is None else np.array(rows)
    numbers = np.zeros(count, np.int64), np.arange(count)
    return GlobalBatch(*numbers, np.array(lengths), np.array(images), where, int(where.max()) + 1)


def recipe(**overrides: str) -> RunConfig:
    """VILA-7B with few layers, in steps of 8 rows."""
    few = {"model.language.layers": "8", "train.global_batch": "8", "train.micro_batch": "1"}
    return load_run([], few | {name.replace("__", "."): value for name, value in overrides.items()})


def test_rows_of_one_sample() -> None:
    replay = Replay((batch([40, 60, 80, 20], [0, 2, 4, 0]),), 100, is_packed=False)
    assert (replay.images(), replay.samples(), replay.filled()) == (1.5, 4, 0.5)
    assert replay.attended() == 100  # a row is computed whole
    dealt = replay.dealt(2, 1)  # 4 and 0 images on one rank, 2 and 0 on the other
    assert sorted(dealt.images.sum(axis=2).ravel().tolist()) == [2, 4]
    assert (dealt.fullest_pass(), dealt.fullest_rank()) == (4, 4)
    assert dealt.unevenness() == pytest.approx(4 / 3)
    assert replay.dealt(1, 4).images.tolist() == [[[6]]]


def test_packed_rows() -> None:
    # Two samples fill the first row; the second holds one, and padding that sees itself.
    replay = Replay((batch([60, 40, 50], [1, 0, 3], [0, 0, 1]),), 100, is_packed=True)
    assert (replay.images(), replay.samples(), replay.filled()) == (2, 3, 0.75)
    assert replay.attended() == (60**2 + 40**2 + 50**2 + 50**2) / 200
    assert Replay((batch([60], [0]),), 100, is_packed=True).dealt(1, 1).unevenness() == 1


@pytest.mark.parametrize("layout", ["tensor=1", "tensor=1,pipeline=2"])
def test_a_planted_imbalance_lengthens_the_step(layout: str) -> None:
    config = with_layout(recipe(), layout)
    ranks = Layout.of(config.parallel, 8)
    lengths = [4096] * 8
    even = Replay((batch(lengths, [2] * 8),), 4096, is_packed=False)
    uneven = Replay((batch(lengths, [16] + [0] * 7),), 4096, is_packed=False)
    job = job_of(config, ranks, Known(replay=even))
    alike = step_time(job, A100, FITTED, even.dealt(ranks.data, 1))
    waits = step_time(job, A100, FITTED, uneven.dealt(ranks.data, 1))
    assert alike.unevenness == pytest.approx(0, abs=1e-9)
    times = PassTimes(job, Clock(A100, job, FITTED))
    first = job.chunks()[0]
    full, usual = (times.of(first, images, 4096) for images in (16.0, 2.0))
    # Nothing hides the images that one row has more; the rank's other pass, without, is faster.
    longer = full.forward + full.backward - usual.forward - usual.backward
    least = longer if layout == "tensor=1" else 0.8 * longer
    assert least <= waits.unevenness * (1 + 1e-9) <= longer * (1 + 1e-6)
    assert waits.total == pytest.approx(alike.total + waits.unevenness, rel=1e-6)
    # Its passes are held in memory, too, and not an average.
    held = [
        rank_memory(job_of(config, ranks, Known(replay=one)), 0, FITTED).activations
        for one in (even, uneven)
    ]
    assert held[0] < held[1]


def test_long_samples_hold_a_rank_up() -> None:
    config = recipe(data__packing="true")
    ranks = Layout.of(config.parallel, 2)
    rows = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    lengths = [1024] * 4 + [4096, *[4096] * 6]
    replay = Replay((batch(lengths, [0] * 11, rows),), 4096, is_packed=True)
    assert replay.attended() == (4 * 1024**2 / 4096 + 7 * 4096) / 8
    job = job_of(config, ranks, Known(replay=replay))
    assert job.attended == replay.attended()
    assert step_time(job, A100, FITTED, replay.dealt(2, 1)).unevenness > 0


@pytest.mark.parametrize(
    ("decoding", "workers", "waits"), [(12.0, 4, 1.0), (12.0, 8, 0.0), (12.0, 0, 12.0), (0.0, 0, 0)]
)
def test_images_that_are_not_decoded_in_time(decoding: float, workers: int, waits: float) -> None:
    config = recipe()
    time = replace(
        step_time(job_of(config, Layout.of(config.parallel, 8)), A100, FITTED), total=2.0
    )
    found = with_loading(time, decoding, workers)
    assert (found.data, found.total) == (waits, 2 + waits)


def test_images_are_decoded_by_the_workers_of_each_rank() -> None:
    config = recipe(data__workers="1")
    plan = plan_of(with_layout(config, "tensor=1"), 8, A100, FITTED, Known(images=20, decoded=1))
    assert plan.time.total == pytest.approx(20)  # one row a rank, one image a second
    assert plan.limits().startswith("arithmetic, and images that are not decoded in time")


@pytest.mark.parametrize(
    ("options", "disk", "count", "stall", "waiting"),
    [
        # 12 x 400 + 2 x 1,000 bytes a rank, of 2; copied in 1 s, written in 4 s.
        ({}, 3400, 10, 1.0, 9 * 1.0 + 5.0),
        ({"train__async_save": "false"}, 3400, 10, 5.0, 50.0),
        # 10 steps of 2 s pass between saves: of 1 + 136 s, 117 are left over.
        ({}, 100, 10, 1 + 117.0, 9 * 118.0 + 137.0),
        # Half of what a rank writes finds no room: 2 s of the 4 are waited for.
        ({"train__save_memory_gib": str(3400 / 2**30)}, 3400, 10, 3.0, 9 * 3.0 + 5.0),
        ({"train__save_every": "1000"}, 3400, 1, 1.0, 5.0),
        ({"train__save_every": "30"}, 3400, 4, 1.0, 3 * 1.0 + 5.0),
    ],
)
def test_what_checkpoints_cost(
    options: dict[str, str], disk: float, count: int, stall: float, waiting: float
) -> None:
    config = recipe(**({"train__steps": "100", "train__save_every": "10"} | options))
    job = job_of(config, Layout.of(config.parallel, 1))
    (stage,) = job.stages
    # As many bytes as are copied in a second, so that figures are small.
    job = replace(
        job,
        share=replace(job.share, tensor=2),
        stages=(replace(stage, weights=1000, learnt=400),),
    )
    unit = 6800 / COPIED
    found = saves_of(config, job, 2.0 * unit, disk / unit)
    assert (found.count, found.size) == (count, 2 * 6800)
    assert found.stall / unit == pytest.approx(stall)
    assert found.waiting / unit == pytest.approx(waiting)


@pytest.mark.parametrize("layout", ["pipeline=4", "pipeline=2,virtual=2", "pipeline=4,virtual=2"])
@pytest.mark.parametrize("images", [0, 20])
def test_no_other_division_of_layers_is_faster(layout: str, images: int) -> None:
    config = with_layout(recipe(model__language__layers="10"), layout)
    job = job_of(config, Layout.of(config.parallel, 4), Known(images=images))
    times = PassTimes(job, Clock(A100, job, FITTED))
    pipeline, chunks = job.share.pipeline, job.chunks()

    def slowest(counts: tuple[int, ...]) -> float:
        stages = [
            replace(one, layers=n, learning=n, backward=n)
            for one, n in zip(chunks, counts, strict=True)
        ]
        passes = [times.of(stage, job.images, job.attended) for stage in stages]
        ranks = (passes[rank::pipeline] for rank in range(pipeline))
        return max(sum(one.forward + one.backward for one in mine) for mine in ranks)

    possible = (
        (*counts, 10 - sum(counts))
        for counts in product(range(1, 10), repeat=len(chunks) - 1)
        if sum(counts) < 10
    )
    assert slowest(balanced_layers(times)) == pytest.approx(min(map(slowest, possible)), rel=1e-6)


TINY = ["--gpus", "2", "--top", "2", "--model.language.layers", "2", "--train.global_batch", "4"]


def test_the_command_says_what_it_took_from_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, prefix = write_dataset(tmp_path)
    (tmp_path / "pairs.bin").unlink()  # the index is enough
    asked = [*TINY, "--data.blend", f"[{{path: '{prefix}', epochs: 2}}]", "--train.epochs", "1"]
    assert main([*asked, "--json", str(tmp_path / "plan.json")]) == 0
    told = capsys.readouterr().out
    assert "Rows are those of pairs: 8 steps of their indices are replayed." in told
    assert re.search(r"images of a row +0\.\d\d +the index, 8 steps replayed", told)
    assert re.search(r"steps +12 +train\.epochs 1 of the index", told)  # 48 samples, 4 to a step
    assert '"steps_replayed": 8' in (tmp_path / "plan.json").read_text()
    assert max(map(len, told.splitlines()[2:])) <= 100

    shutil.move(tmp_path / "pairs.idx", tmp_path / "elsewhere")
    shutil.move(tmp_path / "pairs.manifest.json", tmp_path / "elsewhere.json")
    assert main(asked) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Rows are taken to be full of images.* there is no dataset .*pairs", told)
    assert re.search(r"steps 100 assumed: the datasets say what train\.epochs comes to", told)
    assert main([*asked, "--images", "3"]) == 0
    assert "Rows are taken to hold 3 images on average" in capsys.readouterr().out

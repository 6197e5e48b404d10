"""Which rank ended a run: by what each left behind, in whatever order the launcher saw it."""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vila_mc.train.rank_status import (
    Ending,
    Heartbeat,
    StatusWriter,
    collective_on_gpu,
    read_ending,
    read_heartbeat,
)
from vila_mc.train.verdict import FROZEN_SECONDS, RankEnd, verdict_of

NOW = 1000.0
LONG_AGO = NOW - FROZEN_SECONDS - 1
STEP = "train.step.Trainer.step"
LOST = Ending(NOW, STEP, "all_reduce", "lost", "lost contact with another rank: Connection closed")
FAULT = Ending(NOW - 1, STEP, "", "fault", "KeyError: 3")
ENDS = Heartbeat(NOW + 0.5, "train.rank.train_rank", "", NOW)
WORKS = Heartbeat(NOW - 0.5, "data.loader.next", "", NOW - 50)
IN_NCCL = Heartbeat(NOW - 0.5, STEP, "all_reduce 7 of pipeline", NOW - 50)
SILENT = Heartbeat(LONG_AGO, STEP, "", LONG_AGO - 1)


def _bystander(rank: int, at: float = NOW, **more: Any) -> RankEnd:
    return RankEnd(rank, 1, at, heartbeat=ENDS, ending=LOST, **more)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        pytest.param(
            [_bystander(0), RankEnd(1, -9, NOW + 5, heartbeat=WORKS)],
            "rank 1 was killed by SIGKILL at .*, last seen in data.loader.next .*memory ran out",
            id="killed, seen after the one that noticed",
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, -7, NOW + 5)],
            r"rank 1 was killed by SIGBUS at .* \(most often a file that it had mapped was cut",
            id="its dataset was cut",
        ),
        pytest.param(
            [
                RankEnd(0, 1, NOW + 5, ending=FAULT),
                _bystander(1),
            ],
            r"rank 0 ended with exit code 1 \(KeyError: 3\)$",
            id="failed, seen after the one that noticed",
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, 1, NOW), RankEnd(2, -15, NOW, was_ended=True)],
            "rank 1 ended with exit code 1$",
            id="died without a word",
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, -9, NOW, was_ended=True, was_frozen=True, heartbeat=SILENT)],
            "rank 1 has stood still since .* in train.step.Trainer.step; rank 0 waited in "
            "all_reduce of train.step.Trainer.step$",
            id="stopped",
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, -9, NOW + 30, was_ended=True, heartbeat=SILENT)],
            "rank 1 has stood still since",
            id="no longer runs Python",
        ),
        pytest.param(
            [RankEnd(0, -6, NOW), RankEnd(1, -9, NOW + 30, was_ended=True, heartbeat=SILENT)],
            "rank 1 has stood still since",
            id="the watchdog aborts who waits for it",
        ),
        pytest.param(
            [RankEnd(0, -6, NOW, heartbeat=IN_NCCL), RankEnd(1, -15, NOW, True, heartbeat=WORKS)],
            "rank 1 did not come on since .* in data.loader.next; rank 0 waited in all_reduce 7",
            id="the watchdog aborts who waits on a GPU",
        ),
        pytest.param(
            [RankEnd(0, -6, NOW), RankEnd(1, -15, NOW, was_ended=True, heartbeat=WORKS)],
            "rank 0 was killed by SIGABRT",
            id="an abort by itself",
        ),
        pytest.param(
            [RankEnd(0, -6, NOW), _bystander(1)], "rank 0 was killed by SIGABRT", id="an abort"
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, -9, NOW + 30, was_ended=True, heartbeat=WORKS)],
            "rank 1 did not come on since .* in data.loader.next; rank 0 waited in all_reduce",
            id="runs, but never comes to the others",
        ),
        pytest.param(
            [_bystander(0), RankEnd(1, 0, NOW - 60, heartbeat=SILENT)],
            "the ranks lost contact with each other",
            id="ended well before",
        ),
        pytest.param(
            [_bystander(0), _bystander(1), _bystander(2)],
            "the ranks lost contact with each other .*; rank [02] waited in .* and 2 more ranks",
            id="nobody is known to have failed",
        ),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_one_that_failed_is_named(ends: list[RankEnd], said: str, is_reversed: bool) -> None:
    assert re.match(said, verdict_of(ends[::-1] if is_reversed else ends).cause)


def test_what_lies_on_another_machine_is_not_blamed_on_this_one() -> None:
    verdict = verdict_of([_bystander(0), _bystander(1)], other_machines=True)
    assert "another machine" in verdict.cause
    assert not verdict.is_hang
    late = replace(LOST, message="lost contact: Timed out waiting 60000ms for recv operation")
    assert verdict_of([RankEnd(0, 1, NOW, ending=late)], other_machines=True).is_hang


def test_a_rank_writes_where_it_is_and_why_it_ends(tmp_path: Path) -> None:
    status = StatusWriter(tmp_path, 3)
    # Its first may be from within the writer.
    while (beat := read_heartbeat(tmp_path, 3)) is None or beat.place != "its start":
        time.sleep(0.005)
    assert beat.since <= beat.time <= time.monotonic()
    assert beat.collective == ""
    try:
        dist.all_reduce(torch.ones(1))
    except ValueError as error:  # there is no process group
        status.end("lost", "nobody is there", error)
    ending = read_ending(tmp_path, 3)
    assert (ending.cause, ending.message) == ("lost", "nobody is there")
    assert ending.where() == "all_reduce of its start"
    assert read_heartbeat(tmp_path, 4) is None
    assert read_ending(tmp_path, 4) is None


def _recorded(number: int, *, is_p2p: bool = False) -> dict[str, Any]:
    """An entry of torch's flight recorder."""
    return {
        "record_id": number,
        "process_group": ["3", "TENSOR_MODEL_PARALLEL_GROUP"],
        "collective_seq_id": 40 + number,
        "p2p_seq_id": 70 + number,
        "is_p2p": is_p2p,
        "profiling_name": "nccl:send 0->1" if is_p2p else "nccl:all_reduce",
        "state": "started",
    }


@pytest.mark.parametrize(
    ("said", "collective"),
    [
        (json.dumps({"entries": [_recorded(7), _recorded(2)]}), "all_reduce 42 of 3 TENSOR_"),
        (json.dumps({"entries": [_recorded(2, is_p2p=True)]}), "send 0->1 72 of 3 TENSOR_"),
        (json.dumps({"entries": []}), ""),
        ("of another version", ""),
    ],
)
def test_what_nccl_waits_for(said: str, collective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c10d = SimpleNamespace(_dump_nccl_trace_json=lambda collectives, active: said)
    played = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: True),
        _C=SimpleNamespace(_distributed_c10d=c10d),
    )
    assert collective_on_gpu() == ""
    monkeypatch.setitem(sys.modules, "torch", played)
    assert collective_on_gpu().startswith(collective)
    assert bool(collective_on_gpu()) == bool(collective)

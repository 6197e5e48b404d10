"""Calls that do not meet are found, and named with both sides."""

from dataclasses import replace

import pytest

from vila_mc.rehearsal.match import match
from vila_mc.rehearsal.record import Call, Peak, RankRecord

NOTHING = Peak(num_bytes=0, by_kind={}, tensors=[])


def call(
    op: str, group: str = "tensor", size: int = 8, where: str = "a.py:1", **options: int
) -> Call:
    return Call(op, group, size, "bfloat16", "forward", where, **options)


def rank(number: int, calls: list[Call], groups: dict[str, list[int]]) -> RankRecord:
    return RankRecord(
        rank=number,
        tensor=number,
        pipeline=0,
        num_weights=0,
        num_trained=0,
        microbatches=1,
        build=NOTHING,
        step=NOTHING,
        flops={},
        calls=calls,
        groups=groups,
        waits={},
        complaints=[],
    )


PAIR = {"tensor": [0, 1]}
SUM, GATHER = call("allreduce"), call("allgather")


def test_what_matches_is_counted() -> None:
    there = [SUM, call("send", "pipeline", peer=1), GATHER]
    here = [SUM, GATHER, call("receive", "pipeline", where="b.py:2", peer=0)]
    found = match([rank(1, here, PAIR), rank(0, there, PAIR)])
    assert (found.num_collectives, found.num_messages, found.differences) == (2, 1, [])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([GATHER, SUM], "call 1 is allreduce of 8 bytes of bfloat16 at a.py:1, and allgather"),
        ([SUM], "2 calls, and 1; the first without another is allgather"),
        ([SUM, GATHER, GATHER], "2 calls, and 3; the first without another is allgather"),
        ([SUM, replace(GATHER, num_bytes=4)], "call 2 is allgather of 8 bytes"),
        ([SUM, replace(GATHER, dtype="float32")], "and allgather of 8 bytes of float32"),
        ([SUM, replace(GATHER, group="data")], "2 calls, and 1"),
    ],
    ids=["order", "missing", "surplus", "size", "format", "another group"],
)
def test_collectives_that_differ(other: list[Call], said: str) -> None:
    (difference,) = match([rank(0, [SUM, GATHER], PAIR), rank(1, other, PAIR)]).differences
    assert difference.startswith("group tensor, ranks 0 and 1: ")
    assert said in difference


@pytest.mark.parametrize(
    ("sent", "received", "said"),
    [
        ([call("send", peer=1)], [], "1 calls, and 0"),
        ([], [call("receive", peer=0)], "0 calls, and 1"),
        ([call("send", peer=1)], [call("receive", size=4, peer=0)], "call 1 is send of 8 bytes"),
    ],
    ids=["nobody receives", "nobody sends", "size"],
)
def test_messages_that_do_not_arrive(sent: list[Call], received: list[Call], said: str) -> None:
    (difference,) = match([rank(0, sent, PAIR), rank(1, received, PAIR)]).differences
    assert difference.startswith("messages from rank 0 to rank 1: ")
    assert said in difference


def test_ranks_that_were_not_rehearsed_are_left_out() -> None:
    others = {"data": [0, 8]}
    found = match([rank(0, [call("allreduce", "data"), call("send", peer=8)], others)])
    assert (found.num_collectives, found.num_messages, found.differences) == (0, 0, [])


def test_groups_of_one_purpose_are_told_apart_by_their_ranks() -> None:
    found = match([rank(0, [SUM], {"tensor": [0, 1]}), rank(4, [], {"tensor": [4, 5]})])
    assert found.differences == []

"""Do the ranks of a layout mean the same calls? What does not match hangs a run, or breaks it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.rehearsal.record import Call, RankRecord


@dataclass(frozen=True, slots=True)
class Matching:
    """What was compared, and what differs."""

    num_collectives: int
    """Calls of collectives that two or more of the ranks take part in."""
    num_messages: int
    """Messages between two of the ranks."""
    differences: list[str]
    """One line each; empty if all is as it must be."""


def match(records: Sequence[RankRecord]) -> Matching:
    """Compare the calls of ranks that were rehearsed.

    Collectives of a group must come in the same order, with the same sizes and formats, on all its
    ranks; and what one rank sends to another must be what that one receives from it, in order.
    """
    ranks = sorted(records, key=lambda record: record.rank)
    collectives, differences = _match_collectives(ranks)
    messages, unmet = _match_messages(ranks)
    return Matching(collectives, messages, [*differences, *unmet])


def _match_collectives(ranks: Sequence[RankRecord]) -> tuple[int, list[str]]:
    """How many were compared, and what differs from the first rank of its group."""
    by_group: dict[tuple[str, tuple[int, ...]], list[RankRecord]] = defaultdict(list)
    for record in ranks:
        for name, members in record.groups.items():
            by_group[name, tuple(members)].append(record)
    compared, differences = 0, []
    for (name, _), here in by_group.items():
        first, *others = here
        expected = _collectives(first, name)
        compared += len(expected) if others else 0
        for other in others:
            difference = _first_difference(expected, _collectives(other, name))
            if difference:
                differences.append(
                    f"group {name}, ranks {first.rank} and {other.rank}: {difference}"
                )
    return compared, differences


def _match_messages(ranks: Sequence[RankRecord]) -> tuple[int, list[str]]:
    """How many were compared, and what one side does otherwise than the other."""
    sent: dict[tuple[int, int], list[Call]] = defaultdict(list)
    received: dict[tuple[int, int], list[Call]] = defaultdict(list)
    for record in ranks:
        for call in record.calls:
            if call.peer is not None and call.op == "send":
                sent[record.rank, call.peer].append(call)
            elif call.peer is not None:
                received[call.peer, record.rank].append(call)
    here = {record.rank for record in ranks}
    compared, differences = 0, []
    for pair in sorted(sent.keys() | received.keys()):
        if not here.issuperset(pair):
            continue
        compared += len(sent[pair])
        difference = _first_difference(sent[pair], received[pair])
        if difference:
            differences.append(f"messages from rank {pair[0]} to rank {pair[1]}: {difference}")
    return compared, differences


def _collectives(record: RankRecord, group: str) -> list[Call]:
    return [call for call in record.calls if call.group == group and call.peer is None]


def _first_difference(one: Sequence[Call], other: Sequence[Call]) -> str:
    """In words; nothing if they match."""
    for number, (a, b) in enumerate(zip(one, other, strict=False), start=1):
        if _meaning(a) != _meaning(b):
            return f"call {number} is {_said(a)}, and {_said(b)}"
    if len(one) == len(other):
        return ""
    longer, count = (one, len(other)) if len(one) > len(other) else (other, len(one))
    return (
        f"{len(one)} calls, and {len(other)}; the first without another is {_said(longer[count])}"
    )


def _meaning(call: Call) -> tuple[object, ...]:
    """What both sides must have in common: a receive is the other side of a send."""
    op = "message" if call.peer is not None else call.op
    return op, call.num_bytes, call.dtype


def _said(call: Call) -> str:
    return f"{call.op} of {call.num_bytes:,} bytes of {call.dtype} at {call.where}"

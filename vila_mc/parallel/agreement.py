"""Do all ranks mean the same run? Asked before anything that would hang or go wrong if not."""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist

from vila_mc.errors import ConfigError

_MOST_NAMED = 4
"""Differences in one line."""
_LONGEST_THOUGHT = timedelta(days=7)
"""Of a person that ranks wait for."""


def require_same(facts: Mapping[str, str], device: torch.device) -> None:
    """Refuse to go on with ranks that differ in any of ``facts``; every rank must call this.

    One gather of 32 bytes a rank; what differs is looked for only when something does.

    Args:
        facts: what a person calls it -> its value on this rank.
        device: where the backend of the process groups wants its tensors.

    Raises:
        ConfigError: on every rank, with what differs and on which machine and ranks.
    """
    text = json.dumps(facts, sort_keys=True)
    mine = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
    digests = [torch.empty_like(mine, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(digests, mine.to(device))
    if all(torch.equal(digest, digests[0]) for digest in digests):
        return
    by_rank: list[tuple[str, Mapping[str, str]]] = [("", {})] * len(digests)
    dist.all_gather_object(by_rank, (socket.gethostname(), dict(facts)))
    names = list(dict.fromkeys(name for _, theirs in by_rank for name in theirs))
    different = [
        f"{name} is {_by_value(name, by_rank)}"
        for name in names
        if len({theirs.get(name) for _, theirs in by_rank}) > 1
    ]
    more = f"; and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
    raise ConfigError(
        f"the ranks were not started for the same run: {'; '.join(different[:_MOST_NAMED])}{more}. "
        "Start every machine with the same recipe, options, data and version."
    )


def greatest(number: int, device: torch.device) -> int:
    """The greatest of what all ranks have; every rank must call this."""
    mine = torch.tensor(number, device=device)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return int(mine)


def said_by_all[T](mine: T) -> list[T]:
    """What each rank says, by rank; every rank must call this."""
    said = [mine] * dist.get_world_size()
    dist.all_gather_object(said, mine)
    return said


def chosen_by_first(
    numbers: Sequence[int], group: dist.ProcessGroup, device: torch.device
) -> list[int]:
    """The whole numbers of the first rank of a group, on all of them; all must call this."""
    if group.size() == 1:
        return list(numbers)
    chosen = torch.tensor(numbers, device=device)
    dist.broadcast(chosen, group=group, group_src=0)
    found: list[int] = chosen.tolist()
    return found


def said_by_first[T](items: Iterator[T]) -> Iterator[T]:
    """What the first rank iterates over, on every rank; the others' ``items`` are not looked at.

    They wait for as long as it takes: items may be what a person types.
    """
    if dist.get_world_size() == 1:
        yield from items
        return
    # Of NCCL a GPU would wait by working.
    group = dist.new_group(backend="gloo", timeout=_LONGEST_THOUGHT)
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    while True:
        held: list[tuple[T, ...]] = [tuple(islice(items, 1)) if dist.get_rank() == 0 else ()]
        dist.broadcast_object_list(held, src=0, group=group)
        if not held[0]:
            return
        yield held[0][0]


def _by_value(name: str, by_rank: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """``VALUE on HOST (rank 0, 1), OTHER on HOST (rank 2, 3)``."""
    values: dict[str, dict[str, list[int]]] = {}
    for rank, (host, facts) in enumerate(by_rank):
        values.setdefault(facts.get(name, "not set"), {}).setdefault(host, []).append(rank)
    return ", ".join(
        f"{value} on {host} (rank {_shown(ranks)})"
        for value, hosts in values.items()
        for host, ranks in hosts.items()
    )


def _shown(ranks: Sequence[int]) -> str:
    is_range = len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1
    return f"{ranks[0]} to {ranks[-1]}" if is_range else ", ".join(map(str, ranks))


def names_of_ranks(device: torch.device) -> list[str]:
    """What a person calls each rank: ``rank 3 (HOST, GPU 1)``. Every rank must call this."""
    where = socket.gethostname()
    if device.type == "cuda":
        where += f", GPU {device.index}"
    everywhere = [""] * dist.get_world_size()
    dist.all_gather_object(everywhere, where)
    return [f"rank {rank} ({place})" for rank, place in enumerate(everywhere)]

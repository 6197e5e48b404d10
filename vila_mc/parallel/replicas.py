"""Are weights that several ranks hold copies of still the same, bit for bit?

Data-parallel ranks hold copies of all weights, tensor-parallel ranks of those that are not split
among them (norms, biases, most connectors), and the first and last stage of a tied embedding.
Nothing compares them while a run goes on; a copy that has drifted or lost a bit is seen in no loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vila_mc.errors import TrainingError
from vila_mc.parallel.agreement import names_of_ranks
from vila_mc.parallel.groups import Ranks

_CHUNK = 2**20
"""Elements that are multiplied at a time."""
_ODD = -0x61C8864680B583EB
"""2**64 over the golden ratio as a signed number: multiples of it differ in all their bits."""
_MASK = 2**62 - 1
_ABSENT = -(2**63)
_WHOLE = -1
"""In place of the number of a part: the weight is not split."""
_MOST_NAMED = 4
"""Weights, and ranks, in one line."""


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that this rank holds."""

    name: str
    """In the whole model; copies have one name."""
    weight: Tensor
    is_split: bool
    """Whether tensor-parallel ranks hold different parts of it."""


class Replicas:
    """Compares what ranks hold copies of. Every rank must make one, together.

    Args:
        names: the name of each weight that this rank holds, and whether it is split.
        ranks: this rank and its groups.
    """

    def __init__(self, names: Mapping[str, bool], ranks: Ranks) -> None:
        self._ranks = ranks
        stages: list[Mapping[str, bool]] = [{}] * ranks.layout.pipeline
        dist.all_gather_object(stages, dict(names), group=ranks.groups.pp)
        tensor = ranks.layout.tensor
        every = {
            (name, part): None
            for stage in stages
            for name, is_split in stage.items()
            for part in (range(tensor) if is_split else (_WHOLE,))
        }
        self._slots = {key: slot for slot, key in enumerate(every)}

    def require_equal(self, held: Sequence[Held], when: str) -> None:
        """Compare; one all-reduce of 16 bytes for each weight of the whole model.

        Every rank must call this together.

        Args:
            held: what this rank holds, named as at the beginning.
            when: what a person calls the moment.

        Raises:
            TrainingError: on every rank; it names weights and ranks that differ.
        """
        mine = dict(self._checksums(held))
        sums = torch.full((2, len(self._slots)), _ABSENT, device=self._ranks.device)
        if mine:
            slots = torch.tensor(list(mine), device=self._ranks.device)
            own = torch.stack(list(mine.values()))
            sums[:, slots] = torch.stack([own, -own])
        dist.all_reduce(sums, op=dist.ReduceOp.MAX)
        greatest, least = sums[0], -sums[1]
        differing = (greatest != least).nonzero().flatten().tolist()
        if differing:
            raise self._error(differing, mine, when)

    def _checksums(self, held: Sequence[Held]) -> Iterator[tuple[int, Tensor]]:
        """Slot and checksum of each weight; the first of two copies on one rank counts."""
        factors = torch.arange(1, 2 * _CHUNK, 2, device=self._ranks.device) * _ODD
        for each in held:
            part = self._ranks.at.tensor if each.is_split else _WHOLE
            yield self._slots[each.name, part], checksum(each.weight, factors)

    def _error(
        self, differing: Sequence[int], mine: Mapping[int, Tensor], when: str
    ) -> TrainingError:
        """What differs and where; every rank must call this together."""
        named = differing[:_MOST_NAMED]
        own = {slot: int(mine[slot]) for slot in named if slot in mine}
        by_rank: list[Mapping[int, int]] = [{}] * dist.get_world_size()
        dist.all_gather_object(by_rank, own)
        names, keys = names_of_ranks(self._ranks.device), list(self._slots)
        lines = []
        for slot in named:
            values: dict[int, list[str]] = {}
            for name, sums in zip(names, by_rank, strict=True):
                if slot in sums:
                    values.setdefault(sums[slot], []).append(name)
            lines.append(f"{_called(keys[slot])} {_sides(list(values.values()))}")
        more = f"; and {len(differing) - len(named)} more" if len(differing) > len(named) else ""
        return TrainingError(
            f"copies of weights differ {when}: {'; '.join(lines)}{more}. Nothing was saved of it. "
            "Go on from the newest checkpoint, without the machine that is named: its memory or a "
            "GPU of it may be at fault. If it comes again elsewhere, the fault is in the program."
        )


def checksum(weight: Tensor, factors: Tensor) -> Tensor:
    """A number that any one changed bit changes.

    Args:
        weight: of any format with 1, 2, 4 or 8 bytes an element.
        factors: [n] int64, odd and different from each other.

    Returns:
        [] int64, from 0 to 2**62.
    """
    # Halves of what has 8 bytes: the highest bits of a product would not be kept.
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
    bits = weight.detach().reshape(-1).view(kinds[weight.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    for start in range(0, bits.numel(), len(factors)):
        chunk = bits[start : start + len(factors)]
        # Products with odd numbers, and sums of them, are exact modulo 2**64.
        total = total * _ODD + (chunk.long() * factors[: len(chunk)]).sum()
    return total & _MASK


def _called(key: tuple[str, int]) -> str:
    name, part = key
    return f"{name} (part {part} of it)" if part != _WHOLE else name


def _sides(groups: Sequence[Sequence[str]]) -> str:
    """Where the copies are equal: ``is one on rank 0 (HOST), another on rank 1 (HOST)``."""
    groups = sorted(groups, key=len)
    most = sum(map(len, groups))
    if 2 * len(groups[-1]) > most:
        odd = [name for group in groups[:-1] for name in group]
        return f"on {_listed(odd)} is not what it is on {len(groups[-1])} other ranks"
    return "is " + ", ".join(
        f"{'one' if number == 0 else 'another'} on {_listed(group)}"
        for number, group in enumerate(groups)
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more

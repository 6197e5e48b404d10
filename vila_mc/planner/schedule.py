"""The pipeline's schedule, simulated event by event: 1F1B, interleaved where stages are virtual.

Orders are those of Megatron-Core (arXiv 2104.04473, section 2.2): a rank runs some forward passes
ahead, then one forward and one backward pass in turn, then the backward passes that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Event:
    """When a pass of one microbatch through one chunk runs."""

    rank: int
    direction: Direction
    chunk: int
    """Among all chunks of the pipeline, in the order a token flows through them."""
    microbatch: int
    start: float
    end: float


Turn = tuple[bool, int, int]
"""A pass in a rank's order: whether it goes back, its chunk and its microbatch."""


def rank_order(rank: int, pipeline: int, virtual: int, microbatches: int) -> list[Turn]:
    """The passes of one pipeline rank, in its order."""
    total = microbatches * virtual
    if virtual == 1:
        ahead = min(pipeline - rank - 1, total)
    else:
        ahead = min((pipeline - rank - 1) * 2 + (virtual - 1) * pipeline, total)
    there = [_turn(False, rank, pipeline, virtual, one) for one in range(total)]
    back = [_turn(True, rank, pipeline, virtual, one) for one in range(total)]
    paired = zip(there[ahead:], back, strict=False)
    return [*there[:ahead], *(one for pair in paired for one in pair), *back[total - ahead :]]


def _turn(is_back: bool, rank: int, pipeline: int, virtual: int, turn: int) -> Turn:
    """Groups of as many microbatches as ranks, chunk by chunk."""
    group, within = divmod(turn, pipeline * virtual)
    chunk, offset = divmod(within, pipeline)
    if is_back:
        chunk = virtual - 1 - chunk
    return is_back, chunk * pipeline + rank, group * pipeline + offset


def simulate(
    forward: Sequence[Sequence[float]],
    backward: Sequence[Sequence[float]],
    pipeline: int,
    transfer: float,
) -> list[Event]:
    """When every pass of every rank runs.

    Args:
        forward: seconds of the forward pass through each chunk, in flow order, of each
            microbatch: a multiple of ``pipeline`` where there are virtual stages.
        backward: the same of the backward pass.
        pipeline: ranks; there are as many chunks or a multiple of them.
        transfer: seconds from one rank to the next.

    Returns:
        Events, each rank's in their order.
    """
    chunks, microbatches = len(forward), len(forward[0])
    orders = [
        rank_order(rank, pipeline, chunks // pipeline, microbatches) for rank in range(pipeline)
    ]
    seconds = (forward, backward)
    # When a pass has run, by direction, chunk and microbatch; 0 is a forward pass's beginning.
    ended = [[[-1.0] * microbatches for _ in range(chunks)] for _ in range(2)]
    free, at = [0.0] * pipeline, [0] * pipeline
    events: list[Event] = []
    waiting = list(range(pipeline))
    while waiting:
        left = len(events)
        for rank in waiting:
            order = orders[rank]
            while at[rank] < len(order):
                is_back, chunk, microbatch = order[at[rank]]
                if not is_back:
                    ready = ended[0][chunk - 1][microbatch] + transfer if chunk else 0.0
                    is_there = not chunk or ready >= transfer
                elif chunk == chunks - 1:
                    ready = ended[0][chunk][microbatch]
                    is_there = ready >= 0
                else:
                    ready = ended[1][chunk + 1][microbatch] + transfer
                    is_there = ready >= transfer
                if not is_there:
                    break
                start = max(ready, free[rank])
                free[rank] = start + seconds[is_back][chunk][microbatch]
                ended[is_back][chunk][microbatch] = free[rank]
                name: Direction = "backward" if is_back else "forward"
                events.append(Event(rank, name, chunk, microbatch, start, free[rank]))
                at[rank] += 1
        if len(events) == left:
            raise AssertionError("the schedule waits for itself")
        waiting = [rank for rank in waiting if at[rank] < len(orders[rank])]
    return events

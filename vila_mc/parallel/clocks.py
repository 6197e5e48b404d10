"""By how much the clocks of ranks differ."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from vila_mc.parallel.groups import Ranks

_ROUNDS = 20


def clock_offset(ranks: Ranks, clock: Callable[[], float]) -> tuple[float, float]:
    """What to add to this rank's clock for the first one's; every rank must call this together.

    No rank leaves a sum before all have come to it, so that each round says what the difference is
    at most and at least. A difference that may be none is taken for none: ranks of one machine
    have one clock.

    Args:
        ranks: this rank and its groups.
        clock: seconds that never go back.

    Returns:
        seconds to add, and by how much they may be wrong at most.
    """
    one, stamps = torch.ones(1, device=ranks.device), []
    for _ in range(_ROUNDS):
        came = clock()
        dist.all_reduce(one)
        one.item()  # on a GPU it is asked for before it is done
        stamps += [came, clock()]
    mine = torch.tensor(stamps, dtype=torch.float64, device=ranks.device)
    every = torch.empty(
        ranks.layout.world_size() * len(stamps), dtype=mine.dtype, device=mine.device
    )
    dist.all_gather_into_tensor(every, mine)
    first, here = (one.view(_ROUNDS, 2).cpu() for one in (every[: len(stamps)], mine))
    most = float((here[:, 1] - first[:, 0]).min())
    least = float((here[:, 0] - first[:, 1]).max())
    offset = 0.0 if least <= 0 <= most else -(least + most) / 2
    return offset, (most - least) / 2

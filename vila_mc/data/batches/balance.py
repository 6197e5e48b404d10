"""Rows of a global batch dealt to ranks and micro-batches, so that each has the same to do.

What a rank waits for is the slowest of the others. Two costs differ between rows: the number of
images, which the vision tower pays for, and the sum of squares of the samples' lengths, which
attention pays for; everything else depends on the number of positions, which is the same in every
row. Both are known from the index, so every rank deals out alone and all come to the same result.
"""

import numpy as np

_ROUNDS = 24
_MOST_COMPARED = 32
"""Members of a group that a round looks at."""
_TOLERANCE = 1.03
"""A group with so many times the mean of every cost is even enough."""


def deal_rows(costs: np.ndarray, ranks: int, micro_batch: int) -> np.ndarray:
    """Divide rows among data-parallel ranks and their micro-batches.

    Args:
        costs: [rows, 2] images and attention cost of each row.
        ranks: data-parallel ranks; ``ranks * micro_batch`` divides the rows.
        micro_batch: rows of a micro-batch.

    Returns:
        [ranks, micro-batches, micro_batch] int64 rows, each once.
    """
    means = costs.mean(axis=0)
    relative = costs / np.where(means > 0, means, 1.0)
    passes = _deal(relative, len(costs) // micro_batch)
    by_rank = _deal(relative[passes].sum(axis=1), ranks)
    dealt: np.ndarray = passes[by_rank]
    return dealt


def _deal(costs: np.ndarray, num_groups: int) -> np.ndarray:
    """Divide items into groups of one size and nearly the same sum of every cost.

    Args:
        costs: [n, d], of mean 1 or all 0 in each column, up to one common factor.
        num_groups: divides n.

    Returns:
        [groups, n / groups] items.
    """
    if num_groups == len(costs):
        return np.arange(num_groups)[:, None]
    groups = _largest_to_least_loaded(costs.sum(axis=1), num_groups)
    if num_groups == 1:
        return groups
    loads = costs[groups].sum(axis=1)
    means = loads.mean(axis=0)
    for turn in range(_ROUNDS):
        if (loads.max(axis=0) <= means * _TOLERANCE).all():
            break
        _swap_between_extremes(groups, loads, costs, turn)
    return groups


def _largest_to_least_loaded(cost: np.ndarray, num_groups: int) -> np.ndarray:
    """[groups, each] items: in rounds of one item per group, the largest to the lightest group."""
    descending = np.argsort(-cost, kind="stable").reshape(-1, num_groups)
    groups = np.empty((num_groups, len(descending)), np.int64)
    load = np.zeros(num_groups)
    for turn, items in enumerate(descending):
        lightest_first = np.argsort(load, kind="stable")
        groups[lightest_first, turn] = items
        load[lightest_first] += cost[items]
    return groups


def _swap_between_extremes(
    groups: np.ndarray, loads: np.ndarray, costs: np.ndarray, turn: int
) -> None:
    """One swap between the heaviest and the lightest group, the next two, and so on; in place.

    Which cost decides what is heavy changes from turn to turn. A swap is made where it brings the
    two groups closer together in all costs taken together.
    """
    num_pairs = len(groups) // 2
    ascending = np.argsort(loads[:, turn % loads.shape[1]], kind="stable")
    light, heavy = ascending[:num_pairs], ascending[::-1][:num_pairs]
    columns = _some_columns(groups.shape[1], turn)
    given, taken = costs[groups[heavy][:, columns]], costs[groups[light][:, columns]]
    apart = loads[heavy] - loads[light]
    moved = given[:, :, None] - taken[:, None, :]  # [pairs, k, k, d]
    left = ((apart[:, None, None] - 2 * moved) ** 2).sum(axis=-1)
    best = left.reshape(num_pairs, -1).argmin(axis=1)
    pairs = np.arange(num_pairs)
    helps = left.reshape(num_pairs, -1)[pairs, best] < (apart**2).sum(axis=-1) * (1 - 1e-9)
    pairs, best = pairs[helps], best[helps]
    give, take = columns[best // len(columns)], columns[best % len(columns)]
    heavy, light = heavy[pairs], light[pairs]
    one, other = groups[heavy, give], groups[light, take]
    groups[heavy, give], groups[light, take] = other, one
    change = costs[other] - costs[one]
    loads[heavy] += change
    loads[light] -= change


def _some_columns(num: int, turn: int) -> np.ndarray:
    if num <= _MOST_COMPARED:
        return np.arange(num)
    return np.unique((np.arange(_MOST_COMPARED) * num // _MOST_COMPARED + turn) % num)

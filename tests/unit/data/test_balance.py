"""Rows dealt to ranks: each row once, and every rank with the same to do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_mc.data.batches.balance import deal_rows


def unpacked_costs(num_rows: int) -> np.ndarray:
    """Single samples: 0 to 6 images, lengths of any size."""
    choose = np.random.default_rng(1)
    return np.stack([choose.integers(0, 7, num_rows), choose.integers(50, 4096, num_rows) ** 2], 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_every_row_is_dealt_once(ranks: int, passes: int, micro_batch: int, seed: int) -> None:
    num_rows = ranks * passes * micro_batch
    costs = np.random.default_rng(seed).integers(0, 5, (num_rows, 2)).astype(float)
    dealt = deal_rows(costs, ranks, micro_batch)
    assert dealt.shape == (ranks, passes, micro_batch)
    assert sorted(dealt.ravel().tolist()) == list(range(num_rows))


@pytest.mark.parametrize(("ranks", "micro_batch"), [(16, 1), (16, 8), (4, 2), (2, 1)])
def test_ranks_have_the_same_to_do(ranks: int, micro_batch: int) -> None:
    costs = unpacked_costs(1024)
    dealt = deal_rows(costs, ranks, micro_batch)
    per_rank = costs[dealt].sum(axis=(1, 2))
    assert (per_rank.max(axis=0) <= 1.02 * per_rank.mean(axis=0)).all()
    if micro_batch == 8:
        per_pass = costs[dealt].sum(axis=2).reshape(-1, 2)
        assert (per_pass.max(axis=0) <= 1.15 * per_pass.mean(axis=0)).all()
    in_order = costs.reshape(ranks, -1, 2).sum(axis=1)
    assert in_order.max(axis=0)[0] > 1.02 * in_order.mean(axis=0)[0]


def test_a_cost_that_nobody_has_is_no_trouble() -> None:
    costs = np.stack([np.zeros(8), np.arange(8.0)], axis=1)
    loads = costs[deal_rows(costs, 2, 1)].sum(axis=(1, 2))
    assert loads[:, 1].tolist() == [14, 14]

"""When two traces count as equal."""

from collections.abc import Sequence

import pytest

from tests.parity.layout_trace import Trace

LOSS_TOLERANCE = 1e-5
GRAD_NORM_TOLERANCE = 1e-4
"""Relative. Layouts differ by about 1e-7; a mean of means moves the loss by more than 1e-4."""


def assert_every_rank_matches(traces: Sequence[Trace], expected: Trace, name: str = "") -> None:
    """Compare the trace of each rank with the expected one, losses and norms apart."""
    for rank, trace in enumerate(traces):
        where = f"{name} rank {rank}"
        assert _losses(trace) == pytest.approx(_losses(expected), rel=LOSS_TOLERANCE), where
        assert _norms(trace) == pytest.approx(_norms(expected), rel=GRAD_NORM_TOLERANCE), where


def _losses(trace: Trace) -> list[float]:
    return [loss for loss, _ in trace]


def _norms(trace: Trace) -> list[float]:
    return [grad_norm for _, grad_norm in trace]

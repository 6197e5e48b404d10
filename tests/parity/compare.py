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


def assert_near(got: Trace, expected: Trace) -> None:
    """As near as 16 bits come."""
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], rel=2e-3)
    assert [norm for _, norm in got] == pytest.approx([norm for _, norm in expected], rel=3e-2)


def print_figure(name: str, got: Trace, expected: Trace) -> None:
    """A line of the table of tests/gpu.sh: the greatest relative differences."""
    loss, norm = (
        max(abs(a[index] / b[index] - 1) for a, b in zip(got, expected, strict=True))
        for index in range(2)
    )
    print(f"\n| {name} | loss {loss:.1e}, gradient norm {norm:.1e} |")


def _losses(trace: Trace) -> list[float]:
    return [loss for loss, _ in trace]


def _norms(trace: Trace) -> list[float]:
    return [grad_norm for _, grad_norm in trace]

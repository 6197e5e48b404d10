"""Random generators go on where they were, on the same kind of device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from vila_mc.checkpoint import state as state_module


@pytest.fixture
def tracker() -> Iterator[Any]:
    tracker = get_cuda_rng_tracker()
    before = tracker.get_states()
    yield tracker
    tracker.set_states(before)


@pytest.mark.parametrize(
    ("of_a_gpu", "restored"), [(None, True), (torch.zeros(16, dtype=torch.uint8), False)]
)
def test_states_of_a_gpu_mean_nothing_on_a_cpu(
    of_a_gpu: torch.Tensor | None, restored: bool, tracker: Any
) -> None:
    saved = state_module._generators()
    expected = torch.rand(3)
    saved["cuda"], saved["tensor_parallel"] = of_a_gpu, {"fork": torch.zeros(16)}
    state_module.restore_random_state(saved)
    assert torch.equal(torch.rand(3), expected)
    assert ("fork" in tracker.get_states()) is restored

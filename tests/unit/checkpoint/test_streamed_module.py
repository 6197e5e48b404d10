"""Weights that are read when they are used, and gone afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vila_mc.checkpoint.streamed_module import parameters_without_memory, stream_weights

STATUS = Path("/proc/self/status")


def test_a_streamed_module_computes_the_same_and_holds_nothing() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with parameters_without_memory():
        streamed = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    stream_weights(streamed, whole.state_dict().__getitem__, resident=["2.bias"])
    x = torch.randn(3, 4)
    with torch.inference_mode():
        assert torch.equal(streamed(x), whole(x))
    held = [name for name, weight in streamed.named_parameters() if not weight.is_meta]
    assert held == ["2.bias"]


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_layers() -> None:
    # What an allocator keeps depends on what was there before: a process of its own.
    finished = subprocess.run(
        [sys.executable, __file__], check=True, capture_output=True, text=True
    )
    assert float(finished.stdout) < 180  # the weights in fp32 are 360 MiB


class _Block(nn.Module):
    """Matrices of 4 and 16 MiB in fp32, as those of a vision tower."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(1024, 1024)
        self.widen = nn.Linear(1024, 4096)
        self.back = nn.Linear(4096, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.back(torch.relu(self.widen(self.narrow(x))))


def _growth_mib() -> float:
    """Memory that is left when a module has run."""
    with parameters_without_memory():
        module = nn.Sequential(*(_Block() for _ in range(10)))
    stored = torch.zeros(4096 * 1024, dtype=torch.bfloat16)
    shapes = {name: weight.shape for name, weight in module.named_parameters()}
    stream_weights(module, lambda name: stored[: shapes[name].numel()].view(shapes[name]))
    before = _anonymous_mib()
    with torch.inference_mode():
        module(torch.zeros(2, 577, 1024))
    return _anonymous_mib() - before


def _anonymous_mib() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(_growth_mib())

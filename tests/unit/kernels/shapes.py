"""Shapes and random tensors of the kernel tests."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

WIDE = torch.float64
EXACT = dict(rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Fold:
    """A downsample: n images of grid x grid patches of e channels, folded by factor."""

    n: int
    grid: int
    e: int
    factor: int
    has_cls: bool

    @property
    def channels(self) -> int:
        return self.e * self.factor**2

    def features(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.n, self.has_cls + self.grid**2, self.e)
        return (torch.randn(shape, generator=generator) * 2 + 0.5).to(dtype)

    def norm(
        self, dtype: torch.dtype = torch.float32, seed: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight, bias = torch.randn((2, self.channels), generator=generator).to(dtype)
        return weight, bias

    @property
    def args(self) -> tuple[int, bool]:
        return self.factor, self.has_cls


folds = st.builds(
    Fold,
    n=st.integers(0, 3),
    grid=st.integers(1, 7),
    e=st.sampled_from([1, 3, 8, 33, 70]),
    factor=st.integers(1, 3),
    has_cls=st.booleans(),
)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half a unit in the last place, relative to the number."""
    return torch.finfo(dtype).eps / 2


def assert_rounded(given: torch.Tensor, exact: torch.Tensor, slack: float | torch.Tensor) -> None:
    """``given`` is ``exact`` rounded to its number format, but for ``slack`` of the arithmetic."""
    assert given.shape == exact.shape
    half = unit_roundoff(given.dtype) * exact.abs()
    subnormal = torch.finfo(given.dtype).smallest_normal * torch.finfo(given.dtype).eps
    error = (given.to(WIDE) - exact).abs()
    worst = (error - half - slack - subnormal).max() if error.numel() else torch.tensor(-1.0)
    assert worst <= 0, f"{float(worst):.3g} beyond half a unit in the last place"

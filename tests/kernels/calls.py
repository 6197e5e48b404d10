"""One call of every operation at a chosen small shape, and how close a kernel has to come."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vila_mc.kernels import reference

HALF_ULP = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place of an output, relative; what fp32 sums may differ by for fp32."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation and its arguments."""

    op: str
    arguments: tuple[Any, ...]

    def on(self, ops: Any) -> tuple[Tensor, ...]:
        """What ``ops`` (the twins, the emulated kernels, torch.ops.vila_mc) makes of it."""
        made = getattr(ops, self.op)(*self.arguments)
        return made if isinstance(made, tuple) else (made,)

    def exact(self) -> tuple[Tensor, ...]:
        """What the twins make of it in fp64."""
        wide = [
            value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in self.arguments
        ]
        return Call(self.op, tuple(wide)).on(reference)


def patch_calls(
    dtype: torch.dtype, *, images: int, grid: int, width: int, factor: int, has_cls: bool
) -> list[Call]:
    """Calls of everything that works on patch features."""
    random = torch.Generator().manual_seed(grid * 1000 + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    features = 2 * normal(images, has_cls + grid * grid, width) + 0.5
    side, channels = -(-grid // factor), factor * factor * width
    weight, bias = normal(channels), normal(channels)
    grad = normal(images, side * side, channels)
    _, mean, rstd = reference.downsample_layernorm(features, weight, bias, factor, has_cls, 1e-5)
    return [
        Call("downsample_gather", (features, factor, has_cls)),
        Call("downsample_gather_backward", (grad, grid, factor, has_cls)),
        Call("downsample_layernorm", (features, weight, bias, factor, has_cls, 1e-5)),
        Call(
            "downsample_layernorm_backward", (grad, features, weight, mean, rstd, factor, has_cls)
        ),
    ]


def splice_calls(
    dtype: torch.dtype,
    *,
    starts: list[list[int]],
    each: int,
    width: int,
    sequence_first: bool,
    shard: tuple[int, int] = (0, 12),
) -> list[Call]:
    """Calls of the splice into two rows of 12 positions, or the ``shard`` [first, end) of them."""
    random = torch.Generator().manual_seed(each * 100 + width)
    positions = shard[1] - shard[0]
    shape = (positions, 2, width) if sequence_first else (2, positions, width)
    text = torch.randn(shape, generator=random).to(dtype)
    places = torch.tensor(starts, dtype=torch.int64).view(-1, 2)
    visual = torch.randn((len(places), each, width), generator=random).to(dtype)
    where = (sequence_first, shard[0], 12)
    return [
        Call("splice_visual", (text, visual, places, *where)),
        Call("splice_visual_text_grad", (text, places, each, *where)),
        Call("splice_visual_visual_grad", (text, places, each, *where)),
    ]


def patchify_call(dtype: torch.dtype, *, images: int, y: int, x: int, patch: int) -> Call:
    """A call of normalize_patchify."""
    random = torch.Generator().manual_seed(y)
    pixels = torch.randint(0, 256, (images, 3, y, x), dtype=torch.uint8, generator=random)
    table = reference.normalization_table(dtype, pixels.device)
    return Call("normalize_patchify", (pixels, table, patch))


def assert_close(call: Call, made: Iterable[Tensor]) -> None:
    """Every output is what the twin makes in fp64, but for rounding; copies are bit-equal."""
    dtype = call.arguments[0].dtype
    for got, exact in zip(made, call.exact(), strict=True):
        assert got.shape == exact.shape
        if "layernorm" not in call.op:
            assert torch.equal(got.double(), exact.double())
        else:
            relative = HALF_ULP[got.dtype] if got.dtype != dtype else HALF_ULP[dtype]
            torch.testing.assert_close(got.double(), exact.double(), rtol=relative, atol=1e-5)

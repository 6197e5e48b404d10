"""Calls the native operations with sizes that nobody means; prints how many calls were made.

    python -m tests.support.fuzz_ops LIBRARY

Each call must return or raise RuntimeError. Run it with a library that sanitizers watch.
"""

import itertools
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

EXTREMES = tuple(
    sign * size + more
    for size in (1, 2**31, 2**32, 2**62, 2**63 - 2)
    for sign in (1, -1)
    for more in (-1, 0, 1)
)
"""And their neighbours, so that 0, 2, 2**31 - 1 and the largest integer are among them."""
HUGE = (0, 1, 2, 2**31, 2**40, 2**62)


def _sizes(count: int) -> list[tuple[int, ...]]:
    """Shapes without memory or of one number: one axis is huge and another empty, or all are 1."""
    shapes = [shape for shape in itertools.product(HUGE, repeat=count) if 0 in shape]
    return [*shapes, (1,) * count]


def _tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    """None where torch itself refuses the shape."""
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError:
        return None


def _calls(ops: Any, choose: random.Random) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Operations with their arguments."""
    features = torch.ones(2, 10, 3)
    norm = torch.ones(12)
    text, visual = torch.ones(10, 2, 3), torch.ones(2, 3, 3)
    starts = torch.tensor([[0, 1], [1, 4]])
    images, table = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(3, 256)
    for n in EXTREMES:
        yield ops.downsample_gather, (features, n, True)
        yield ops.downsample_layernorm, (features, norm, norm, n, True, 1e-5)
        yield (
            ops.downsample_layernorm_backward,
            (features, features, norm, norm, norm, n, True),
        )
        yield ops.normalize_patchify, (images, table, n)
        for m in EXTREMES:
            yield ops.downsample_gather_backward, (torch.ones(2, 4, 12), n, m, True)
            yield ops.splice_visual, (text, visual, starts, True, n, m)
            there = torch.tensor([[n, m], [0, 0]])
            yield ops.splice_visual, (text, visual, there, choose.random() < 0.5, 0, 10)
            for op in (ops.splice_visual_text_grad, ops.splice_visual_visual_grad):
                yield op, (text, there, 3, choose.random() < 0.5, 2, 2**62)
                yield op, (text, starts, n, choose.random() < 0.5, m, choose.choice(EXTREMES))
    for shape in _sizes(3):
        given, n = _tensor(shape), choose.choice(EXTREMES)
        if given is not None:
            yield ops.downsample_gather, (given, choose.choice((1, 2, n)), choose.random() < 0.5)
            yield ops.downsample_gather_backward, (given, *choose.choices((1, 2, n), k=2), False)
            yield ops.splice_visual, (given, given, starts[:0], True, 0, n)
            yield (
                ops.splice_visual_visual_grad,
                (given, starts[:0], choose.choice(HUGE), True, 0, n),
            )
            yield ops.splice_visual_text_grad, (given, starts[:0], n, False, 0, 2**62)
    for shape in _sizes(4):
        given = _tensor((shape[0], 3, *shape[2:]), torch.uint8)
        if given is not None:
            yield ops.normalize_patchify, (given, table, choose.choice((1, 2, *EXTREMES)))


def main(library: str) -> None:
    torch.ops.load_library(library)
    torch.set_num_threads(2)
    calls = refused = 0
    for op, arguments in _calls(torch.ops.vila_mc, random.Random(1)):
        calls += 1
        try:
            op(*arguments)
        except RuntimeError:
            refused += 1
    print(f"{calls} calls, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1])

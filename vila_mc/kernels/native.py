"""Loads the libraries built from csrc/, and gives their operations shapes and gradients."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARIES = {"cpu": "libvila_mc_cpu.so", "cuda": "libvila_mc_cuda.so"}
"""Beside this file, where setup.py puts them; the first also holds the signatures."""


@cache
def loaded() -> frozenset[str]:
    """Kinds of device ("cpu", "cuda") that have native operations; loads them on the first call."""
    kinds = []
    for kind, name in _LIBRARIES.items():
        path = Path(__file__).with_name(name)
        if kind == "cuda" and ("cpu" not in kinds or not torch.cuda.is_available()):
            continue
        if path.exists() and _load(kind, path):
            kinds.append(kind)
    if kinds:
        _register()
    return frozenset(kinds)


def missing(kind: str) -> str | None:
    """A sentence for people if this kind of device has no native operations, else None."""
    if kind in loaded():
        return None
    why = _unloadable.get(kind, "csrc/ is not built for it")
    if kind == "cuda" and "cpu" not in loaded():
        why = "they need the CPU library, which holds their signatures"
    return f"no native kernels on {kind}, plain torch does their work: {why} (docs/kernels.md)"


_unloadable: dict[str, str] = {}
"""Why a library that is there does not load: built for a newer torch, or another system."""


def _load(kind: str, path: Path) -> bool:
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        _unloadable[kind] = str(error).splitlines()[0]
        return False
    return True


def _register() -> None:
    """Fake versions (shapes only) and gradients of every operation, for torch's machinery."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"vila_mc::{name}", fake)
    for name, (backward, setup) in _GRADIENTS.items():
        torch.library.register_autograd(f"vila_mc::{name}", backward, setup_context=setup)


# ---------------------------------------------------------------- shapes


def _merged(features: Tensor, factor: int, has_cls: bool) -> tuple[int, int, int]:
    n, p, e = features.shape
    grid = round((p - has_cls) ** 0.5)
    return n, (-(-grid // factor)) ** 2, factor * factor * e


def _statistics(features: Tensor, rows: tuple[int, int]) -> Tensor:
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty(rows, dtype=wide)


def _fake_gather(features: Tensor, factor: int, has_cls: bool) -> Tensor:
    return features.new_empty(_merged(features, factor, has_cls))


def _fake_gather_backward(grad: Tensor, grid: int, factor: int, has_cls: bool) -> Tensor:
    n, _, channels = grad.shape
    return grad.new_empty((n, has_cls + grid * grid, channels // factor**2))


def _fake_layernorm(
    features: Tensor, weight: Tensor, bias: Tensor, factor: int, has_cls: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, tokens, channels = _merged(features, factor, has_cls)
    out = features.new_empty((n, tokens, channels))
    return out, _statistics(features, (n, tokens)), _statistics(features, (n, tokens))


def _fake_layernorm_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    factor: int,
    has_cls: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(weight), torch.empty_like(weight)


def _fake_layernorm_fp8(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    factor: int,
    has_cls: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, mean, rstd = _fake_layernorm(features, weight, bias, factor, has_cls, eps)
    amax = features.new_empty((1,), dtype=torch.float32)
    return out.to(torch.float8_e4m3fn), amax, mean, rstd


def _fake_splice(
    text: Tensor,
    visual: Tensor,
    image_starts: Tensor,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    return text.new_empty(text.shape)


def _fake_text_grad(
    grad: Tensor,
    image_starts: Tensor,
    num_visual: int,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    return grad.new_empty(grad.shape)


def _fake_visual_grad(
    grad: Tensor,
    image_starts: Tensor,
    num_visual: int,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    return grad.new_empty((image_starts.shape[0], num_visual, grad.shape[2]))


def _fake_patchify(images: Tensor, table: Tensor, patch: int) -> Tensor:
    n, channels, y, x = images.shape
    return table.new_empty((n, (y // patch) * (x // patch), channels * patch * patch))


_FAKES: dict[str, Any] = {
    "downsample_gather": _fake_gather,
    "downsample_gather_backward": _fake_gather_backward,
    "downsample_layernorm": _fake_layernorm,
    "downsample_layernorm_backward": _fake_layernorm_backward,
    "downsample_layernorm_fp8": _fake_layernorm_fp8,
    "splice_visual": _fake_splice,
    "splice_visual_text_grad": _fake_text_grad,
    "splice_visual_visual_grad": _fake_visual_grad,
    "normalize_patchify": _fake_patchify,
}


# ---------------------------------------------------------------- gradients


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, ctx.factor, ctx.has_cls = inputs
    ctx.grid = round((features.shape[1] - ctx.has_cls) ** 0.5)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.vila_mc.downsample_gather_backward(grad, ctx.grid, ctx.factor, ctx.has_cls)
    return grad, None, None


def _setup_layernorm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight, _, ctx.factor, ctx.has_cls, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(features, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _layernorm_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, mean, rstd = ctx.saved_tensors
    grads = torch.ops.vila_mc.downsample_layernorm_backward(
        grad, features, weight, mean, rstd, ctx.factor, ctx.has_cls
    )
    return *grads, None, None, None


def _setup_splice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, visual, image_starts, *where = inputs
    ctx.save_for_backward(image_starts)
    ctx.num_visual, ctx.where = visual.shape[1], where


def _splice_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (image_starts,) = ctx.saved_tensors
    ops, text, visual = torch.ops.vila_mc, None, None
    if ctx.needs_input_grad[0]:
        text = ops.splice_visual_text_grad(grad, image_starts, ctx.num_visual, *ctx.where)
    if ctx.needs_input_grad[1]:
        visual = ops.splice_visual_visual_grad(grad, image_starts, ctx.num_visual, *ctx.where)
    return text, visual, None, None, None, None


_GRADIENTS: dict[str, Any] = {
    "downsample_gather": (_gather_backward, _setup_gather),
    "downsample_layernorm": (_layernorm_backward, _setup_layernorm),
    "splice_visual": (_splice_backward, _setup_splice),
}

"""Loads the libraries built from csrc/, and gives their operations shapes and gradients."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from vila_mc.kernels import reference

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
    public = (name for name in vars(reference) if not name.startswith("_"))
    for name in filter(partial(hasattr, torch.ops.vila_mc), public):
        torch.library.register_fake(f"vila_mc::{name}", _fake(name))
    for name, (backward, setup) in _GRADIENTS.items():
        torch.library.register_autograd(f"vila_mc::{name}", backward, setup_context=setup)


# ---------------------------------------------------------------- shapes


def _fake(name: str) -> Callable[..., Any]:
    """Shapes of a native operation: those of its twin, on tensors without memory."""
    twin = getattr(reference, name)

    def fake(*inputs: Any) -> Any:
        outputs = twin(*inputs)
        return tree_map(lambda output: output.new_empty(output.shape), outputs)

    return fake


# ---------------------------------------------------------------- gradients


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, ctx.factor, ctx.has_cls = inputs
    ctx.grid = round((features.shape[1] - int(ctx.has_cls)) ** 0.5)


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

"""FP8 linears beside a reference that quantizes by itself. Imported under emulation alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformer_engine.pytorch as te
from torch import Tensor
from torch.nn import functional as F
from transformer_engine.common import recipe

from tests.te.modules import relative, rms_norm

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
TOKENS, WIDTH, OUT = 160, 256, 384  # neither tokens nor blocks of 128 come out even
HISTORY = 3

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Input and weight of the forward product, gradient and weight of the input's gradient, gradient
and input of the weight's: each as its GEMM sees it, [rows, columns]."""


def cast(values: Tensor, kind: torch.dtype, scale: Tensor | float) -> Tensor:
    """There and back again."""
    limit = LARGEST[kind]
    return (values.float() * scale).clamp(-limit, limit).to(kind).float() / scale


def by_tensor(values: Tensor, kind: torch.dtype) -> Tensor:
    """One scale, from the tensor itself."""
    return cast(values, kind, LARGEST[kind] / values.float().abs().max())


def below(amax: Tensor, kind: torch.dtype) -> Tensor:
    """The power of two at or below the largest number / amax; 1 where there is nothing to scale."""
    scale = (LARGEST[kind] / amax).clamp(max=torch.finfo(torch.float32).max)
    _, exponent = torch.frexp(scale)
    return torch.where(amax == 0, 1.0, 2.0 ** (exponent - 1))


def by_rows(values: Tensor, kind: torch.dtype) -> Tensor:
    """A power of two for every 128 values of a row."""
    parts = torch.split(values.float(), 128, 1)
    scales = [below(part.abs().amax(1, keepdim=True), kind) for part in parts]
    return torch.cat([cast(part, kind, s) for part, s in zip(parts, scales, strict=True)], 1)


def by_columns(values: Tensor, kind: torch.dtype) -> Tensor:
    """The same along columns."""
    return by_rows(values.t(), kind).t()


def by_squares(values: Tensor, kind: torch.dtype) -> Tensor:
    """A power of two for every 128 x 128 values."""
    out = values.float().clone()
    for i in range(0, values.shape[0], 128):
        for j in range(0, values.shape[1], 128):
            part = out[i : i + 128, j : j + 128]
            scale = below(part.abs().max(), kind)
            out[i : i + 128, j : j + 128] = cast(part, kind, scale)
    return out


def by_thirty_twos(values: Tensor, kind: torch.dtype) -> Tensor:
    """MXFP8: for every 32 values of a row the power of two at or above amax / largest."""
    parts = torch.split(values.float(), 32, 1)
    amaxes = [part.abs().amax(1, keepdim=True).double() / LARGEST[kind] for part in parts]
    powers = [2.0 ** torch.ceil(torch.log2(amax)).float() for amax in amaxes]
    return torch.cat([cast(p, kind, 1 / power) for p, power in zip(parts, powers, strict=True)], 1)


class Delayed:
    """Scales from the amaxes of earlier steps: the greatest, or the last of them."""

    def __init__(self, *, depth: int = HISTORY, margin: int = 0) -> None:
        self.depth, self.headroom = depth, 2.0**margin
        self.past: dict[str, list[float]] = {"x": [], "weight": [], "grad": []}

    def __call__(self, x: Tensor, weight: Tensor, grad: Tensor) -> Operands:
        q = {}
        for name, values, kind in (("x", x, E4M3), ("weight", weight, E4M3), ("grad", grad, E5M2)):
            past = self.past[name][-self.depth :]
            q[name] = cast(values, kind, LARGEST[kind] / max(past) / self.headroom if past else 1.0)
            self.past[name].append(float(values.float().abs().max()))
        return q["x"], q["weight"], q["grad"], q["weight"], q["grad"], q["x"]


def current(x: Tensor, weight: Tensor, grad: Tensor) -> Operands:
    """Scales from the tensors themselves."""
    qx, qweight, qgrad = by_tensor(x, E4M3), by_tensor(weight, E4M3), by_tensor(grad, E5M2)
    return qx, qweight, qgrad, qweight, qgrad, qx


def blockwise(x: Tensor, weight: Tensor, grad: Tensor) -> Operands:
    """Blocks run along the sums of each product."""
    q = by_squares(weight, E4M3)
    return (
        by_rows(x, E4M3),
        q,
        by_rows(grad, E4M3),
        q,
        by_columns(grad, E4M3),
        by_columns(x, E4M3),
    )


def mxfp8(x: Tensor, weight: Tensor, grad: Tensor) -> Operands:
    """Blocks run along the sums of each product, of weights as well."""

    def along_columns(values: Tensor) -> Tensor:
        return by_thirty_twos(values.t(), E4M3).t()

    return (
        by_thirty_twos(x, E4M3),
        by_thirty_twos(weight, E4M3),
        by_thirty_twos(grad, E4M3),
        along_columns(weight),
        along_columns(grad),
        along_columns(x),
    )


@dataclass(frozen=True)
class Case:
    """A recipe of Transformer Engine and what it is to compute."""

    recipe: Callable[[], Any]
    reference: Callable[[], Callable[[Tensor, Tensor, Tensor], Operands]]
    blocks: dict[str, Any] = field(default_factory=dict)


CASES = {
    "delayed": Case(
        lambda: recipe.DelayedScaling(amax_history_len=HISTORY, amax_compute_algo="max"), Delayed
    ),
    "delayed, most recent": Case(
        lambda: recipe.DelayedScaling(
            amax_history_len=HISTORY, amax_compute_algo="most_recent", margin=2
        ),
        lambda: Delayed(depth=1, margin=2),
    ),
    "current": Case(recipe.Float8CurrentScaling, lambda: current),
    "blockwise": Case(recipe.Float8BlockScaling, lambda: blockwise),
    "mxfp8": Case(recipe.MXFP8BlockScaling, lambda: mxfp8),
}


def linear_differences(name: str, steps: int = 5) -> list[dict[str, float]]:
    """Output and gradients of te.Linear against the reference, relative, of each step."""
    torch.manual_seed(1)
    case = CASES[name]
    scaling, reference = case.recipe(), case.reference()
    linear = te.Linear(WIDTH, OUT, bias=True, params_dtype=torch.bfloat16)
    found = []
    for step in range(steps):
        growth = (4.0, 1.0, 0.5, 0.25, 2.0)[step]  # so that a maximum leaves the history
        x = (torch.randn(TOKENS, WIDTH) * growth).bfloat16().requires_grad_()
        grad = (torch.randn(TOKENS, OUT) / growth).bfloat16()
        linear.zero_grad()
        with te.fp8_autocast(enabled=True, fp8_recipe=scaling):
            y = linear(x)
        y.backward(grad)
        fwd_x, fwd_w, dx_grad, dx_w, dw_grad, dw_x = reference(
            x.detach(), linear.weight.detach(), grad
        )
        wanted = {
            "output": (y, fwd_x @ fwd_w.t() + linear.bias.detach().float()),
            "input": (x.grad, dx_grad @ dx_w),
            "weight": (linear.weight.grad, dw_grad.t() @ dw_x),
            "bias": (linear.bias.grad, grad.float().sum(0)),
        }
        found.append({part: relative(*pair) for part, pair in wanted.items()})
    return found


def fused_differences(name: str) -> dict[str, float]:
    """RMSNorm and linear in FP8: the input of the product as the norm's kernel quantizes it."""
    torch.manual_seed(2)
    case = CASES[name]
    module = te.LayerNormLinear(
        WIDTH, OUT, bias=False, normalization="RMSNorm", params_dtype=torch.bfloat16
    )
    x = torch.randn(TOKENS, WIDTH).bfloat16()
    with te.fp8_autocast(enabled=True, fp8_recipe=case.recipe()):
        y = module(x)
    normal = rms_norm(x.float(), module.layer_norm_weight.detach().float())
    if name != "delayed":  # whose kernel does not round on the way
        normal = normal.bfloat16().float()
    fwd_x, fwd_w, *_ = case.reference()(normal, module.weight.detach(), torch.ones(TOKENS, OUT))
    return {"output": relative(y, F.linear(fwd_x, fwd_w))}

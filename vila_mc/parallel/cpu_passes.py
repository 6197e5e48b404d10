"""SwiGLU and the rotation of queries and keys, in few passes over memory on a CPU.

Megatron-Core 0.19.2 has torch compile its SwiGLU, which nobody does on a CPU: as it is written, its
backward pass makes nine tensors one after the other. Its rotation makes six, and for every layer
the same cosines and sines anew. What is computed is the same up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vila_mc.parallel.megatron_patches import CPU_PASSES


@contextmanager
def fewer_passes() -> Iterator[None]:
    """While active, Megatron-Core computes these two so. Only for a machine without a GPU."""
    with CPU_PASSES.applied(swiglu, swiglu_backward, Rotation()):
        yield


def swiglu(inputs: Tensor) -> Tensor:
    """``silu(gate) * up``: [..., f] from [..., 2 * f], the gates and then what they are for."""
    gate, up = inputs.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu_backward(grad: Tensor, inputs: Tensor) -> Tensor:
    """The gradient [..., 2 * f] of ``swiglu``, from that of its output [..., f] and its inputs."""
    gate, up = inputs.chunk(2, -1)
    result = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    to_gate, to_up = result.chunk(2, -1)
    torch.mul(grad, up, out=to_gate)
    torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
    torch.ops.aten.silu.out(gate, out=to_up)
    to_up.mul_(grad)
    return result


class Rotation:
    """Turns the halves of every head by the angles of its position, as RoFormer does pairs.

    Cosines and sines are made once for all layers that see the same angles.
    """

    def __init__(self) -> None:
        self._angles: Tensor | None = None
        self._cosines, self._sines = torch.empty(0), torch.empty(0)

    def __call__(self, states: Tensor, angles: Tensor, *, mscale: float = 1.0, **_: Any) -> Tensor:
        """Queries or keys [s, b, a, d] by angles [s, 1 or b, 1, d], whose halves are equal."""
        assert mscale == 1.0, "only YaRN stretches"
        assert angles.size(-1) == states.size(-1), "every channel is turned"
        self._look_up(angles, states.dtype)
        turned: Tensor = _Turn.apply(states, self._cosines, self._sines)
        return turned

    def _look_up(self, angles: Tensor, dtype: torch.dtype) -> None:
        is_known = angles is self._angles and self._cosines.dtype == dtype
        # What is made in inference mode cannot be kept for a backward pass.
        if is_known and self._cosines.is_inference() <= torch.is_inference_mode_enabled():
            return
        half = angles[..., : angles.size(-1) // 2]
        self._angles, self._cosines, self._sines = (
            angles,
            half.cos().to(dtype),
            half.sin().to(dtype),
        )


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turned(states, cosines, sines, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turned(grad, cosines, sines, -1), None, None


def _turned(states: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    first, second = states.chunk(2, -1)
    result = torch.empty(states.shape, dtype=states.dtype)
    to_first, to_second = result.chunk(2, -1)
    torch.mul(first, cosines, out=to_first).addcmul_(second, sines, value=-direction)
    torch.mul(second, cosines, out=to_second).addcmul_(first, sines, value=direction)
    return result

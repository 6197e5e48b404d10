"""What few passes over memory compute is what Megatron-Core's own functions compute."""

import pytest
import torch
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.models.common.embeddings import rope_utils
from torch import Tensor

from vila_mc.parallel.cpu_passes import Rotation, fewer_passes, swiglu, swiglu_backward

S, B, HEADS, D = 6, 2, 3, 8
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float64: 1e-14}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def angles(rows: int = 1) -> Tensor:
    half = draw(S, rows, 1, D // 2)
    return torch.cat([half, half], dim=-1)


def close(got: Tensor, wanted: Tensor) -> bool:
    limit = TOLERANCE[wanted.dtype]
    return got.dtype == wanted.dtype and torch.allclose(got, wanted, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_swiglu_and_its_gradient(dtype: torch.dtype) -> None:
    inputs, grad = draw(S, B, 2 * D, dtype=dtype), draw(S, B, D, dtype=dtype)
    assert torch.equal(swiglu(inputs), fused_bias_swiglu.swiglu(inputs))
    got = swiglu_backward(grad, inputs)
    assert close(got, fused_bias_swiglu.swiglu_back(grad, inputs))
    assert got.is_contiguous()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, B], ids=["one for all rows", "packed rows"])
def test_a_rotation_and_its_gradient(dtype: torch.dtype, rows: int) -> None:
    mixed = draw(S, B, HEADS, 3 * D, dtype=dtype)
    seen = []
    for rotate in (Rotation(), rope_utils._apply_rotary_pos_emb_bshd):
        states = mixed.clone().requires_grad_()
        key = states.split(D, dim=-1)[1]  # as it comes out of the projection: not contiguous
        turned = rotate(key, angles(rows))
        turned.backward(draw(*turned.shape, dtype=dtype))
        assert states.grad is not None
        seen.append((turned.detach(), states.grad))
    assert all(close(got, wanted) for got, wanted in zip(*seen, strict=True))


def test_cosines_are_made_once_for_the_same_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate, seen, states = Rotation(), angles(), draw(S, B, HEADS, D)
    made, cos = [], Tensor.cos
    monkeypatch.setattr(Tensor, "cos", lambda tensor: made.append(1) or cos(tensor))
    first = rotate(states, seen)
    assert torch.equal(rotate(states, seen), first)
    assert len(made) == 1
    assert not torch.equal(rotate(states, 2 * seen), first)
    rotate(states.double(), seen)
    assert len(made) == 3


def test_training_goes_on_where_inference_has_seen_the_angles() -> None:
    rotate, seen = Rotation(), angles()
    with torch.inference_mode():
        expected = rotate(draw(S, B, HEADS, D), seen)
    turned = rotate(draw(S, B, HEADS, D).requires_grad_(), seen)
    turned.sum().backward()
    assert torch.equal(turned, expected)


def test_they_stand_in_for_the_originals_and_are_taken_away() -> None:
    before = fused_bias_swiglu.swiglu_back, rope_utils._apply_rotary_pos_emb_bshd
    with fewer_passes():
        assert fused_bias_swiglu.swiglu is swiglu
        assert fused_bias_swiglu.swiglu_back is swiglu_backward
        assert isinstance(rope_utils._apply_rotary_pos_emb_bshd, Rotation)
    assert (fused_bias_swiglu.swiglu_back, rope_utils._apply_rotary_pos_emb_bshd) == before

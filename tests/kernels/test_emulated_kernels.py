"""The CUDA kernels under emulation against their twins in plain torch."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.calls import Call, assert_close, patch_calls, patchify_call, splice_calls
from tests.support.emulated_ops import FORMATS, EmulatedOps
from tests.support.emulation import Emulator

PATCHES: dict[str, Any] = {
    "whole vectors": dict(images=2, grid=4, width=16, factor=2, has_cls=True),
    "odd grid": dict(images=1, grid=5, width=24, factor=2, has_cls=False),
    "single numbers": dict(images=3, grid=3, width=5, factor=2, has_cls=True),
    "several warps": dict(images=1, grid=4, width=264, factor=2, has_cls=True),
    "3x3": dict(images=1, grid=7, width=8, factor=3, has_cls=True),
    "one patch": dict(images=2, grid=1, width=8, factor=2, has_cls=False),
    "no image": dict(images=0, grid=4, width=8, factor=2, has_cls=True),
}


@pytest.mark.parametrize("dtype", list(FORMATS), ids=str)
@pytest.mark.parametrize("name", list(PATCHES))
def test_patch_kernels_equal_their_twins(emulator: Emulator, name: str, dtype: torch.dtype) -> None:
    emulated = EmulatedOps(emulator, order=1)
    for call in patch_calls(dtype, **PATCHES[name]):
        assert_close(call, call.on(emulated))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    images=st.integers(0, 3),
    grid=st.integers(1, 6),
    width=st.integers(1, 40),
    factor=st.integers(2, 3),
    has_cls=st.booleans(),
    dtype=st.sampled_from(list(FORMATS)),
    order=st.integers(0, 9),
)
def test_patch_kernels_equal_their_twins_at_any_shape(
    emulator: Emulator,
    images: int,
    grid: int,
    width: int,
    factor: int,
    has_cls: bool,
    dtype: torch.dtype,
    order: int,
) -> None:
    emulated = EmulatedOps(emulator, order=order)
    shape: dict[str, Any] = dict(
        images=images, grid=grid, width=width, factor=factor, has_cls=has_cls
    )
    for call in patch_calls(dtype, **shape):
        assert_close(call, call.on(emulated))


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("width", [8, 6, 3])
@pytest.mark.parametrize("shard", [(0, 12), (4, 8), (8, 12)])
@pytest.mark.parametrize("starts", [[[0, 1], [0, 7], [1, 5]], []], ids=["three images", "none"])
def test_splice_kernels_equal_their_twins(
    emulator: Emulator,
    starts: list[list[int]],
    shard: tuple[int, int],
    width: int,
    sequence_first: bool,
) -> None:
    shape: dict[str, Any] = dict(
        starts=starts, each=4, width=width, sequence_first=sequence_first, shard=shard
    )
    for call in splice_calls(torch.bfloat16, **shape):
        assert_close(call, call.on(EmulatedOps(emulator, order=2)))


@pytest.mark.parametrize("dtype", list(FORMATS), ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        dict(images=2, y=28, x=32, patch=4),
        dict(images=1, y=42, x=28, patch=14),
        dict(images=1, y=6, x=9, patch=3),
        dict(images=2, y=8, x=11, patch=3),
        dict(images=0, y=28, x=28, patch=14),
    ],
    ids=["whole vectors", "CLIP", "single numbers", "ragged", "no image"],
)
def test_patchify_equals_its_twin(
    emulator: Emulator, shape: dict[str, int], dtype: torch.dtype
) -> None:
    call = patchify_call(dtype, **shape)
    assert_close(call, call.on(EmulatedOps(emulator, order=3)))


def test_gradients_of_the_norm_have_the_same_bits_in_every_order(emulator: Emulator) -> None:
    (call,) = (
        call
        for call in patch_calls(torch.float32, **PATCHES["odd grid"])
        if call.op == "downsample_layernorm_backward"
    )
    first, *others = (call.on(EmulatedOps(emulator, order=order)) for order in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_wrong_kernel_would_be_seen(emulator: Emulator) -> None:
    calls = patch_calls(torch.float32, **PATCHES["odd grid"])
    norm = next(call for call in calls if call.op == "downsample_layernorm")
    features, weight, bias, factor, has_cls, _ = norm.arguments
    other = Call(norm.op, (features, weight, bias, factor, has_cls, 1e-2))
    with pytest.raises(AssertionError):
        assert_close(norm, other.on(EmulatedOps(emulator)))

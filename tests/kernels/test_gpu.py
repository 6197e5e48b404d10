"""The CUDA operations on a GPU against their twins. Needs one, and ``-m gpu``."""

from typing import Any

import pytest
import torch

from tests.kernels.calls import assert_close, patch_calls, patchify_call, splice_calls
from tests.kernels.small_calls import on_gpu
from vila_mc.kernels import native, ops

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if "cuda" not in native.loaded():
        pytest.fail(
            "csrc/cuda is not built: VILA_MC_BUILD_CUDA=1 pip install -e . --no-build-isolation"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        dict(images=8, grid=24, width=1024, factor=2, has_cls=True),
        dict(images=2, grid=27, width=1152, factor=2, has_cls=False),
        dict(images=2, grid=27, width=1152, factor=3, has_cls=False),
        dict(images=3, grid=5, width=5, factor=2, has_cls=True),
        dict(images=1, grid=1, width=8, factor=2, has_cls=False),
        dict(images=0, grid=4, width=8, factor=2, has_cls=True),
    ],
    ids=["CLIP", "SigLIP", "SigLIP 3x3", "single numbers", "one patch", "no image"],
)
def test_patch_operations_equal_their_twins(shape: dict[str, Any], dtype: torch.dtype) -> None:
    for call in patch_calls(dtype, **shape):
        assert_close(call, on_gpu(call))


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("width", [4096, 6, 3])
@pytest.mark.parametrize("shard", [(0, 12), (4, 8)])
def test_splice_operations_equal_their_twins(
    shard: tuple[int, int], width: int, sequence_first: bool
) -> None:
    starts = [[0, 1], [0, 7], [1, 5]]
    shape: dict[str, Any] = dict(
        starts=starts, each=4, width=width, sequence_first=sequence_first, shard=shard
    )
    for call in splice_calls(torch.bfloat16, **shape):
        assert_close(call, on_gpu(call))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "patch"), [(336, 14), (27, 3)])
def test_patchify_equals_its_twin(size: int, patch: int, dtype: torch.dtype) -> None:
    call = patchify_call(dtype, images=3, y=size, x=size, patch=patch)
    assert_close(call, on_gpu(call))


def test_gradients_of_the_norm_have_the_same_bits_in_every_run() -> None:
    calls = patch_calls(torch.bfloat16, images=8, grid=24, width=1024, factor=2, has_cls=True)
    backward = next(call for call in calls if call.op == "downsample_layernorm_backward")
    first, second = on_gpu(backward), on_gpu(backward)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_operations_run_on_the_stream_that_is_current() -> None:
    features = torch.zeros(64, 577, 1024, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # the fill below comes late on this stream
        features.fill_(1)
        tokens = ops.downsample_gather(features, 2, has_cls=True)
    stream.synchronize()
    assert bool((tokens == 1).all())

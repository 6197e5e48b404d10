"""The operations of csrc/ equal their twins in plain torch, forward and backward."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from tests.unit.kernels.conftest import native_or_skip
from tests.unit.kernels.shapes import EXACT, WIDE, Fold, assert_rounded, folds
from vila_mc.kernels import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ODD = Fold(n=2, grid=5, e=33, factor=2, has_cls=True)

pytestmark = pytest.mark.usefixtures("built")


@settings(max_examples=40, deadline=None)
@given(fold=folds)
def test_gather_and_its_backward_are_bit_equal(fold: Fold) -> None:
    ops, features = native_or_skip(), fold.features(torch.bfloat16)
    tokens = reference.downsample_gather(features, *fold.args)
    assert torch.equal(ops.downsample_gather(features, *fold.args), tokens)
    spread = ops.downsample_gather_backward(tokens, fold.grid, *fold.args)
    assert torch.equal(spread, reference.downsample_gather_backward(tokens, fold.grid, *fold.args))


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=25, deadline=None)
@given(fold=folds)
def test_layernorm_is_the_exact_result_rounded(dtype: torch.dtype, fold: Fold) -> None:
    ops, features, norm = native_or_skip(), fold.features(dtype), fold.norm(dtype)
    out, mean, rstd = ops.downsample_layernorm(features, *norm, *fold.args, 1e-5)
    wide = features.to(WIDE), norm[0].to(WIDE), norm[1].to(WIDE)
    exact, exact_mean, exact_rstd = reference.downsample_layernorm(*wide, *fold.args, 1e-5)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == dtype
    assert mean.dtype == rstd.dtype == statistics
    slack = 1e-11 if dtype == WIDE else 4e-6 * (1 + exact.abs())
    assert_rounded(out, exact, slack)
    # Channels that are all alike have no variance: rstd = 316, and rounding is multiplied by it.
    tolerance = EXACT if dtype == WIDE else dict(rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(mean.to(WIDE), exact_mean, **tolerance)
    torch.testing.assert_close(rstd.to(WIDE), exact_rstd, **tolerance)


# From 1 MiB on outputs are written past the caches, where they are whole cache lines.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "fold",
    [Fold(9, 16, 256, 2, True), Fold(3, 25, 330, 2, True), Fold(9, 9, 1026, 3, False)],
    ids=["lines", "odd", "three"],
)
def test_a_large_layernorm_is_the_exact_result_rounded(
    built: ModuleType, dtype: torch.dtype, fold: Fold
) -> None:
    features, norm = fold.features(dtype), fold.norm(dtype)
    out, *_ = built.downsample_layernorm(features, *norm, *fold.args, 1e-5)
    wide = features.to(WIDE), norm[0].to(WIDE), norm[1].to(WIDE)
    exact, *_ = reference.downsample_layernorm(*wide, *fold.args, 1e-5)
    assert out.nbytes >= 2**20
    assert_rounded(out, exact, 1e-11 if dtype == WIDE else 4e-6 * (1 + exact.abs()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("images", [1, 40])
def test_a_layernorm_shows_nan_and_infinity_where_they_are(
    built: ModuleType, dtype: torch.dtype, images: int
) -> None:
    fold = Fold(images, 8, 256, 2, True)
    features, (weight, bias) = fold.features(dtype), fold.norm(dtype)
    features[0, 1, 3] = torch.nan
    features[0, 3, 5] = torch.inf
    weight[7], bias[9], bias[10] = torch.nan, torch.inf, -torch.inf
    out, *_ = built.downsample_layernorm(features, weight, bias, *fold.args, 1e-5)
    expected, *_ = reference.downsample_layernorm(features, weight, bias, *fold.args, 1e-5)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert torch.equal(
        out[:, :, 9:11].sign().nan_to_num(), expected[:, :, 9:11].sign().nan_to_num()
    )


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=25, deadline=None)
@given(fold=folds)
def test_layernorm_backward_is_the_exact_result_rounded(dtype: torch.dtype, fold: Fold) -> None:
    ops, features, (weight, bias) = native_or_skip(), fold.features(dtype), fold.norm(dtype)
    out, mean, rstd = ops.downsample_layernorm(features, weight, bias, *fold.args, 1e-5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    inputs = grad, features, weight, mean, rstd
    given_grads = ops.downsample_layernorm_backward(*inputs, *fold.args)
    exact_grads = reference.downsample_layernorm_backward(  # type: ignore[call-arg]
        *(tensor.to(WIDE) for tensor in inputs), *fold.args
    )
    # What cancels is larger than what is left: rounding goes by the size of the terms.
    terms = 1.0
    if out.numel():
        size = [float(tensor.to(WIDE).abs().max()) for tensor in (grad, weight, rstd)]
        terms += size[0] * (1 + size[1]) * (1 + size[2]) * fold.channels**0.5 * len(out) ** 0.5
    for given_grad, exact in zip(given_grads, exact_grads, strict=True):
        assert_rounded(given_grad, exact, (1e-13 if dtype == WIDE else 1e-6) * terms)


def test_the_twin_of_layernorm_s_backward_is_torch_s_own() -> None:
    features, norm = ODD.features(WIDE).requires_grad_(), ODD.norm(WIDE)
    weight, bias = (tensor.requires_grad_() for tensor in norm)
    out, mean, rstd = reference.downsample_layernorm(features, weight, bias, *ODD.args, 1e-5)
    grad = torch.randn(out.shape, dtype=WIDE)
    by_torch = torch.autograd.grad(out, (features, weight, bias), grad)
    written_out = reference.downsample_layernorm_backward(
        grad, features, weight, mean, rstd, *ODD.args
    )
    for one, other in zip(written_out, by_torch, strict=True):
        torch.testing.assert_close(one.detach(), other)


def test_gradients_of_the_norm_do_not_depend_on_the_number_of_threads(built: ModuleType) -> None:
    fold = Fold(n=9, grid=8, e=128, factor=2, has_cls=True)
    features, (weight, bias) = fold.features(), fold.norm()
    out, mean, rstd = built.downsample_layernorm(features, weight, bias, *fold.args, 1e-5)

    def on(threads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.set_num_threads(threads)
        return built.downsample_layernorm_backward(
            torch.ones_like(out), features, weight, mean, rstd, *fold.args
        )

    before = torch.get_num_threads()
    try:
        for one, two in zip(on(1), on(2), strict=True):
            assert torch.equal(one, two)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("y", "x", "patch"),
    [(28, 42, 14), (8, 8, 8), (6, 4, 1), (29, 17, 14), (29, 75, 14), (33, 80, 16), (40, 61, 20)],
)
def test_patches_are_bit_equal_to_the_twin(
    built: ModuleType, dtype: torch.dtype, y: int, x: int, patch: int
) -> None:
    images = torch.randint(0, 256, (2, 3, y, x), dtype=torch.uint8)
    table = torch.randn(3, 256, dtype=torch.float64).to(dtype)
    expected = reference.normalize_patchify(images, table, patch)
    assert torch.equal(built.normalize_patchify(images, table, patch), expected)
    assert built.normalize_patchify(images[:0], table, patch).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("shard", [None, (0, 5), (5, 5)])
def test_splice_and_its_gradients_are_bit_equal(
    built: ModuleType, sequence_first: bool, shard: tuple[int, int] | None
) -> None:
    text, visual = torch.randn(10, 2, 3), torch.randn(3, 3, 3)
    starts = torch.tensor([[0, 1], [0, 4], [1, 7]])
    first, length = shard or (0, 10)
    text = text[first : first + length]
    text = text if sequence_first else text.transpose(0, 1)
    where = (sequence_first, first, 10)
    assert torch.equal(
        built.splice_visual(text, visual, starts, *where),
        reference.splice_visual(text, visual, starts, *where),
    )
    for name in ("splice_visual_text_grad", "splice_visual_visual_grad"):
        assert torch.equal(
            getattr(built, name)(text, starts, 3, *where),
            getattr(reference, name)(text, starts, 3, *where),
        )


def _opcheck_inputs() -> dict[str, tuple[Any, ...]]:
    features, (weight, bias) = ODD.features(), ODD.norm()
    out, mean, rstd = reference.downsample_layernorm(features, weight, bias, *ODD.args, 1e-5)
    trained = [tensor.clone().requires_grad_() for tensor in (features, weight, bias)]
    text, visual = torch.randn(10, 2, 3), torch.randn(3, 3, 3)
    starts, where = torch.tensor([[0, 1], [0, 4], [1, 7]]), (True, 0, 10)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    return {
        "downsample_gather": (trained[0], *ODD.args),
        "downsample_gather_backward": (out, ODD.grid, *ODD.args),
        "downsample_layernorm": (*trained, *ODD.args, 1e-5),
        "downsample_layernorm_backward": (out, features, weight, mean, rstd, *ODD.args),
        "splice_visual": (text.requires_grad_(), visual.requires_grad_(), starts, *where),
        "splice_visual of a shard": (text[:5], visual, starts, True, 2, 10),
        "splice_visual_text_grad": (text.detach(), starts, 3, *where),
        "splice_visual_visual_grad": (text.detach(), starts, 3, *where),
        "splice_visual_visual_grad of a shard": (text.detach()[:5], starts, 3, True, 2, 10),
        "normalize_patchify": (images, torch.randn(3, 256), 4),
    }


@pytest.mark.parametrize("case", _opcheck_inputs())
def test_torch_s_own_check_of_custom_operations(built: ModuleType, case: str) -> None:
    torch.library.opcheck(getattr(built, case.split()[0]).default, _opcheck_inputs()[case])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda ops, x: ops.downsample_gather(x[0], 2, True), r"\[26, 33\]; give \[n, cls"),
        (lambda ops, x: ops.downsample_gather(x, 2, False), "26 patches are not a square grid"),
        (lambda ops, x: ops.downsample_gather(x, 0, True), "0 x 0 patches; give 1 or more"),
        (
            lambda ops, x: ops.downsample_gather_backward(x, 5, 2, True),
            "a grid of 5 in blocks of 2 has 9 tokens of a multiple of 4",
        ),
        (
            lambda ops, x: ops.downsample_layernorm(x, x[0, 0], x[0, 0], 2, True, 1e-5),
            r"weight is Float \[33\]; give Float \[132\]",
        ),
        (
            lambda ops, x: ops.normalize_patchify(torch.zeros(1, 3, 3, 9).byte(), x[0], 4),
            "images of 3 x 9 pixels hold no patch of 4",
        ),
        (
            lambda ops, x: ops.splice_visual(x, x[:, :3], torch.tensor([[0, 0]] * 2), True, 1, 2),
            "positions 1 to 3 are no shard of a sequence of 2",
        ),
        (
            lambda ops, x: ops.splice_visual(x, x[:, :1], torch.tensor([[26, 0]] * 2), True, 0, 2),
            "image 0 starts at row 26, position 0; its 1 tokens must lie in 26 rows of 2",
        ),
        (
            lambda ops, x: ops.splice_visual(x, x[:, :1], torch.tensor([[0, 2]] * 2), True, 0, 2),
            "image 0 starts at row 0, position 2",
        ),
        (
            lambda ops, x: ops.splice_visual(x, x, torch.zeros(3, 2).long(), True, 0, 2),
            r"visual is Float \[2, 26, 33\]; give Float \[3, 26, 33\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_memory_is_touched(
    built: ModuleType, call: Callable[..., Any], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        call(built, ODD.features())

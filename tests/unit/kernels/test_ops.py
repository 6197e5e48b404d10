"""The face of the kernels: gradients, projectors, what they keep, what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from tests.unit.kernels.shapes import WIDE, Fold, folds
from vila_mc.kernels import native, ops, reference

ODD = Fold(n=2, grid=3, e=4, factor=2, has_cls=True)
HIDDEN, WIDTH = 10, 6


def _mlp_weights(
    fold: Fold, dtype: torch.dtype = torch.float32, hidden: int = HIDDEN, width: int = WIDTH
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(hidden, fold.channels), (hidden,), (width, hidden), (width,)]
    linear = [torch.randn(s, generator=generator) / s[-1] ** 0.5 for s in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in (*fold.norm(), *linear)]


def _gradients(out: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a loss in which every number of ``out`` counts differently."""
    generator = torch.Generator().manual_seed(5)
    return torch.autograd.grad(
        out, inputs, torch.randn(out.shape, generator=generator).to(out.dtype), allow_unused=True
    )


def _assert_close(
    given: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float
) -> None:
    for one, other in zip(given, expected, strict=True):
        size = float(other.detach().abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(size, 1.0))


@pytest.mark.parametrize("has_cls", [True, False])
def test_gradients_are_those_of_finite_differences(backend: ModuleType, has_cls: bool) -> None:
    fold = Fold(n=1, grid=3, e=2, factor=2, has_cls=has_cls)
    features = fold.features(WIDE).requires_grad_()
    weights = _mlp_weights(fold, WIDE, hidden=3, width=2)
    norm, linear = weights[:2], weights[2:]

    def check(function: Callable[..., Any], *inputs: torch.Tensor) -> None:
        assert torch.autograd.gradcheck(function, inputs)

    fold_by = dict(factor=2, has_cls=has_cls)
    check(lambda x: ops.downsample_gather(x, **fold_by), features)
    check(lambda *i: ops.downsample_layernorm(*i, **fold_by), features, *norm)
    check(lambda *i: ops.downsample_linear(*i, **fold_by), features, *linear[:2])
    check(lambda *i: ops.mlp_downsample(*i, **fold_by), features, *weights)
    frozen = features.detach()
    check(lambda *i: ops.mlp_downsample(frozen, *i, **fold_by), *weights)


def test_gradients_of_the_splice_are_those_of_finite_differences(backend: ModuleType) -> None:
    text = torch.randn(4, 2, 2, dtype=WIDE, requires_grad=True)
    visual = torch.randn(2, 2, 2, dtype=WIDE, requires_grad=True)
    starts = torch.tensor([[0, 1], [1, 2]])
    for shard in ({}, dict(first_position=2, sequence_length=6)):
        assert torch.autograd.gradcheck(
            lambda t, v, shard=shard: ops.splice_visual(t, v, starts, **shard), (text, visual)
        )


@settings(max_examples=20, deadline=None)
@given(fold=folds)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_mlp_downsample_equals_the_chain_of_torch(is_frozen: bool, fold: Fold) -> None:
    features = fold.features().requires_grad_(not is_frozen)
    weights = _mlp_weights(fold)
    inputs = weights if is_frozen else [features, *weights]
    outs = [
        f(features, *weights, factor=fold.factor, has_cls=fold.has_cls, eps=1e-5)
        for f in (ops.mlp_downsample, reference.mlp_downsample)
    ]
    _assert_close(outs[:1], outs[1:], 1e-5)
    # A token whose channels are all alike multiplies rounding by 1 / sqrt(eps) = 316.
    _assert_close(*(_gradients(out, inputs) for out in outs), 1e-5 if fold.channels > 1 else 1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mlp_downsample_in_16_bits_is_as_near_to_fp64_as_the_chain(
    backend: ModuleType, dtype: torch.dtype, is_frozen: bool
) -> None:
    fold = Fold(n=3, grid=5, e=32, factor=2, has_cls=True)
    features = fold.features(dtype).requires_grad_(not is_frozen)
    weights = _mlp_weights(fold, dtype, hidden=64, width=48)
    inputs = weights if is_frozen else [features, *weights]

    def run(function: Callable[..., Any], wide: bool) -> tuple[torch.Tensor, ...]:
        own = [t.detach().to(WIDE if wide else dtype).requires_grad_() for t in inputs]
        out = function(*([features.to(own[0].dtype)] if is_frozen else []), *own, *fold.args, 1e-5)
        return out, *_gradients(out, own)

    def call(*inputs: Any) -> torch.Tensor:
        *tensors, factor, has_cls, eps = inputs
        return ops.mlp_downsample(*tensors, factor, has_cls=has_cls, eps=eps)

    exact = run(reference.mlp_downsample, wide=True)
    ours, chain = run(call, wide=False), run(reference.mlp_downsample, wide=False)
    for one, other, right in zip(ours, chain, exact, strict=True):
        size = right.abs().max()
        allowed = 1.5 * (other - right).abs().max() + torch.finfo(dtype).eps * size
        assert (one - right).abs().max() <= allowed


def test_downsample_linear_equals_the_chain_of_torch(backend: ModuleType) -> None:
    features = ODD.features().requires_grad_()
    _, _, weight, bias, *_ = _mlp_weights(ODD)
    out = ops.downsample_linear(features, weight, bias, 2, has_cls=True)
    expected = reference.downsample_linear(features, weight, bias, 2, True)
    _assert_close([out], [expected], 1e-5)
    inputs = features, weight, bias
    _assert_close(_gradients(out, inputs), _gradients(expected, inputs), 1e-5)


def test_what_is_frozen_gets_no_gradient(backend: ModuleType) -> None:
    features, weights = ODD.features().requires_grad_(), _mlp_weights(ODD)
    for weight in weights:
        weight.requires_grad_(False)
    ops.mlp_downsample(features, *weights, 2, has_cls=True).sum().backward()
    ops.downsample_linear(features, *weights[2:4], 2, has_cls=True).sum().backward()
    assert features.grad is not None
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_shards_of_two_tensor_parallel_ranks_sum_to_the_whole(
    backend: ModuleType, is_frozen: bool
) -> None:
    features = ODD.features().requires_grad_(not is_frozen)
    weights = _mlp_weights(ODD)
    gamma, beta, fc1, fc1_bias, fc2, fc2_bias = weights
    whole = ops.mlp_downsample(features, *weights, 2, has_cls=True)
    shared = [gamma, beta] if is_frozen else [features, gamma, beta]
    expected = _gradients(whole, [*shared, fc1, fc2])
    parts, grads = [], []
    for rank in range(2):
        rows = slice(rank * HIDDEN // 2, (rank + 1) * HIDDEN // 2)
        part = ops.mlp_downsample(
            features, gamma, beta, fc1[rows], fc1_bias[rows], fc2[:, rows],
            fc2_bias if rank == 0 else None, 2, has_cls=True,
        )  # fmt: skip
        parts.append(part)
        grads.append(_gradients(part, [*shared, fc1, fc2]))
    _assert_close([sum(parts)], [whole], 1e-5)
    _assert_close([one + other for one, other in zip(*grads, strict=True)], expected, 1e-5)


def _kept_bytes(function: Callable[..., Any], parameters: list[torch.Tensor]) -> int:
    """Bytes that the graph of ``function`` keeps for backward, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def test_mlp_downsample_keeps_a_third_of_what_the_chain_keeps(backend: ModuleType) -> None:
    fold = Fold(n=2, grid=8, e=16, factor=2, has_cls=True)
    features = fold.features()
    weights = _mlp_weights(fold, hidden=64, width=64)  # 4 e, as in VILA-7B
    ours, chain = (
        _kept_bytes(lambda f=f: f(features, *weights, factor=2, has_cls=True, eps=1e-5), weights)
        for f in (ops.mlp_downsample, reference.mlp_downsample)
    )
    assert ours >= features.nbytes  # it is counted
    assert ours <= 0.35 * chain


def test_inputs_need_not_be_contiguous(backend: ModuleType) -> None:
    strided = ODD.features().transpose(0, 1).contiguous().transpose(0, 1)
    weights = _mlp_weights(ODD)
    plain = strided.contiguous()
    for function, rest in (
        (ops.downsample_gather, ()),
        (ops.downsample_layernorm, weights[:2]),
        (ops.mlp_downsample, weights),
    ):
        args = (*rest, 2)
        expected = function(plain, *args, has_cls=True)
        torch.testing.assert_close(function(strided, *args, has_cls=True), expected)
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    expected = ops.normalize_patchify(images.contiguous(), 4, torch.float32)
    assert torch.equal(ops.normalize_patchify(images, 4, torch.float32), expected)


@pytest.mark.parametrize("patch", [1, 7, 14])
def test_a_patch_embedding_is_a_product_with_the_patches(backend: ModuleType, patch: int) -> None:
    images = torch.randint(0, 256, (2, 3, 29, 17), dtype=torch.uint8)
    conv = torch.nn.Conv2d(3, 5, patch, patch, bias=False)
    expected = conv(reference.normalize_images(images, torch.float32)).flatten(2).transpose(1, 2)
    patches = ops.normalize_patchify(images, patch, torch.float32)
    embedded = patches @ conv.weight.flatten(1).t()
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: ops.downsample_gather(x[0], 2), r"features are float32 \[10, 4\]; give"),
        (lambda x: ops.downsample_gather(x.int(), 2), r"features are int32"),
        (lambda x: ops.downsample_gather(x, 2), "10 patches are not a square grid"),
        (lambda x: ops.downsample_gather(x, 0, has_cls=True), "a block of 0 x 0"),
        (
            lambda x: ops.downsample_layernorm(x, x[0, 0], x[0, 0], 2, has_cls=True),
            r"the norm's weight is float32 \[4\]; .* need torch.float32 \[16\]",
        ),
        (
            lambda x: ops.downsample_linear(x, x[0], None, 2, has_cls=True),
            r"the weight is float32 \[10, 4\]; it meets 16 channels: give \[h, 16\]",
        ),
        (
            lambda x: ops.downsample_linear(x, torch.ones(3, 16), x[0, 0], 2, has_cls=True),
            r"the bias is float32 \[4\]",
        ),
        (lambda x: ops.normalize_patchify(x, 4, torch.float32), r"images are float32"),
        (
            lambda x: ops.normalize_patchify(torch.zeros(1, 3, 8, 3).byte(), 4, torch.float32),
            "images of 8 x 3 pixels hold no patch of 4 pixels",
        ),
    ],
)
def test_refusals_say_what_was_given_and_what_is_allowed(
    call: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        call(ODD.features())


def test_a_library_that_is_absent_or_does_not_load_is_said_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native, "_unloadable", {})
    look_for_them = native.loaded.__wrapped__  # without what an earlier call found
    monkeypatch.setattr(native, "loaded", look_for_them)
    assert native.loaded() == frozenset()
    assert "csrc/ is not built" in native.missing("cpu")
    assert ops.downsample_gather(ODD.features(), 2, has_cls=True).shape == (2, 4, 16)
    (tmp_path / "libvila_mc_cpu.so").write_bytes(b"of another system")
    assert "libvila_mc_cpu.so" in native.missing("cpu")

"""Native operations against the same steps in plain torch: time, and memory kept for backward.

VILA-7B's shapes: 336-pixel images (4, the mean of an MMC4 sample), patches of 14, ViT width 1024,
LLM width 4096. On the CPU; gpu_kernels.py measures a GPU.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from claims import Claim, median_ratio, paired_seconds, parser, report
from torch import Tensor
from torch.nn import functional as F

from vila_mc.kernels import native, ops, reference

IMAGE, PATCH, VIT, LLM = 336, 14, 1024, 4096
GRID = IMAGE // PATCH
MERGED, TOKENS = 4 * VIT, (GRID // 2) ** 2
SEQUENCE = 2048
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Inputs:
    """Random tensors of one number format for ``images`` images."""

    dtype: torch.dtype
    images: int

    def random(self, *shape: int, scale: float = 1.0, trained: bool = False) -> Tensor:
        tensor = torch.randn(shape, dtype=self.dtype) * scale
        return tensor.requires_grad_(trained)

    def features(self, *, trained: bool = False) -> Tensor:
        return self.random(self.images, 1 + GRID**2, VIT, trained=trained)

    def mlp(self) -> list[Tensor]:
        shapes = [(MERGED,), (MERGED,), (LLM, MERGED), (LLM,), (LLM, LLM), (LLM,)]
        return [self.random(*shape, scale=shape[-1] ** -0.5, trained=True) for shape in shapes]

    def pixels(self) -> Tensor:
        shape = (self.images, 3, IMAGE, IMAGE)
        return torch.randint(0, 256, shape, dtype=torch.uint8)


def chain(features: Tensor, *weights: Tensor) -> Tensor:
    """What a model without the kernels does: drop CLS, permute, reshape, norm, linear, GELU."""
    return reference.mlp_downsample(features, *weights, factor=2, has_cls=True, eps=1e-5)  # type: ignore[misc, arg-type]


def ours(features: Tensor, *weights: Tensor) -> Tensor:
    return ops.mlp_downsample(features, *weights, factor=2, has_cls=True)  # type: ignore[misc, arg-type]


def mlp_claims(inputs: Inputs, suffix: str, *, rounds: int) -> Iterator[Claim]:
    """Forward and backward, with the vision tower frozen (the paper's phases) and trained."""
    weights, grad = inputs.mlp(), inputs.random(inputs.images, TOKENS, LLM)
    for trained in (False, True):
        features = inputs.features(trained=trained)

        def step(function: Callable[..., Tensor], features: Tensor = features) -> None:
            torch.autograd.grad(
                function(features, *weights),
                [*weights, features] if features.requires_grad else weights,
                grad,
            )

        seconds = paired_seconds([lambda: step(ours), lambda: step(chain)], rounds=rounds)
        tower = "trained" if trained else "frozen"
        yield Claim(
            f"mlp_downsample forward + backward, {tower} tower, time against the chain, {suffix}",
            median_ratio(*seconds),
            "x",
            target=None if trained else 1.0,
            better="lower",
            how=f"{inputs.images} images, median of {rounds} paired runs; "
            f"ours {1000 * statistics.median(seconds[0]):.0f} ms",
        )


def kept_bytes(function: Callable[..., Tensor], features: Tensor, weights: list[Tensor]) -> int:
    """Bytes that the graph keeps between forward and backward, the weights aside."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(features, *weights)
    return sum(kept.values())


def memory_claim(inputs: Inputs) -> Claim:
    features, weights = inputs.features(), inputs.mlp()
    mine, theirs = (kept_bytes(function, features, weights) for function in (ours, chain))
    return Claim(
        f"mlp_downsample, memory kept for backward against the chain, {NAMES[inputs.dtype]}",
        mine / theirs,
        "x",
        target=0.35,
        better="lower",
        how=f"{inputs.images} images: {mine:,} and {theirs:,} bytes; the features count for ours",
    )


def faster(name: str, old: Callable[[], object], new: Callable[[], object], target: float) -> Claim:
    """How many times faster ``new`` is than ``old``."""
    rounds = 25
    seconds = paired_seconds([old, new], rounds=rounds, warmup=3)
    how = f"median of {rounds} paired runs; {1000 * statistics.median(seconds[1]):.2f} ms"
    return Claim(name, median_ratio(*seconds), "x", target=target, how=how)


def norm_claim(inputs: Inputs, suffix: str) -> Claim:
    features, (gamma, beta, *_) = inputs.features(), inputs.mlp()

    def plain() -> Tensor:
        tokens = reference.downsample_gather(features, 2, True)
        return F.layer_norm(tokens, (MERGED,), gamma, beta, 1e-5)

    with torch.no_grad():
        return faster(
            f"downsample_layernorm forward, faster than gather + layer_norm, {suffix}",
            plain,
            lambda: ops.downsample_layernorm(features, gamma, beta, 2, has_cls=True),
            2.0,
        )


def splice_claim(inputs: Inputs, suffix: str) -> Claim:
    text = inputs.random(SEQUENCE, 1, LLM, trained=True)
    visual = inputs.random(inputs.images, TOKENS, LLM, trained=True)
    step = SEQUENCE // inputs.images
    starts = torch.tensor([[0, 7 + image * step] for image in range(inputs.images)])
    mask = torch.zeros(SEQUENCE, 1, 1, dtype=torch.bool)
    for _, start in starts.tolist():
        mask[start : start + TOKENS] = True
    grad = inputs.random(SEQUENCE, 1, LLM)

    def backward(out: Tensor) -> None:
        torch.autograd.grad(out, (text, visual), grad)

    return faster(
        f"splice_visual forward + backward, faster than masked_scatter, {suffix}",
        lambda: backward(text.masked_scatter(mask, visual)),
        lambda: backward(ops.splice_visual(text, visual, starts)),
        2.0,
    )


def patch_claim(inputs: Inputs, suffix: str) -> Claim:
    pixels = inputs.pixels()

    def plain() -> Tensor:
        normal = reference.normalize_images(pixels, inputs.dtype)
        tiles = normal.view(inputs.images, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(inputs.images, GRID**2, 3 * PATCH**2)

    return faster(
        f"normalise + patchify from u8, faster than arithmetic + permute, {suffix}",
        plain,
        lambda: ops.normalize_patchify(pixels, PATCH, inputs.dtype),
        3.0,
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_claims(arguments: Namespace) -> Iterator[Claim]:
    for dtype, name in NAMES.items():
        inputs = Inputs(dtype, arguments.images)
        yield memory_claim(inputs)
        for count in arguments.threads:
            suffix = f"{name}, {count} thread{'s' * (count > 1)}"
            with threads(count):
                yield from mlp_claims(inputs, suffix, rounds=arguments.rounds)
                yield norm_claim(inputs, suffix)
                yield splice_claim(inputs, suffix)
                yield patch_claim(inputs, suffix)


def main() -> int:
    command = parser(__doc__)
    command.add_argument("--images", type=int, default=4, help="images in a call (default: 4)")
    command.add_argument("--rounds", type=int, default=5, help="runs of the MLP (default: 5)")
    command.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    arguments = command.parse_args()
    torch.manual_seed(1)
    if native.missing("cpu") is not None:
        print(f"warning: {native.missing('cpu')}")
    return report(list(cpu_claims(arguments)), arguments)


if __name__ == "__main__":
    raise SystemExit(main())

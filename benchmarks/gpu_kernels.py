"""The CUDA kernels against a copy and against torch, and the projector against a bare product.

VILA-7B's sizes: CLIP ViT-L/14 at 336 pixels, LLM width 4096, rows of 4096 positions, bf16. Kernels
are timed as replays of one graph of several calls on different inputs, so that neither launches nor
the second-level cache decide. What they are compared with is measured in the same minute.
"""

import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.kernels import native, ops, reference

IMAGE, PATCH, VIT, LLM, SEQUENCE = 336, 14, 1024, 4096, 4096
GRID = IMAGE // PATCH
MERGED, TOKENS = 4 * VIT, (GRID // 2) ** 2
FOLD = (2, True)
BF16 = torch.bfloat16
IMAGES_PER_ROW = 16

Work = Callable[[], object]


def table(*rows: tuple[str, ...]) -> None:
    """Rows of a Markdown table; the first is its head."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if number == 0:
            print("|---" * len(row) + "|")


# ---------------------------------------------------------------- time


def seconds(works: Sequence[Work], rounds: int = 9) -> float:
    """Median seconds of one of ``works``, which a graph replays one after the other."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        for work in works:
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [work() for work in works]  # outputs at different places, as in training
    measured = timed(graph.replay, rounds)
    del kept, graph
    return measured / len(works)


def timed(work: Work, rounds: int = 7, warmup: int = 2) -> float:
    """Median seconds by the GPU's own clock."""
    measured: list[float] = []
    for turn in range(warmup + rounds):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        if turn >= warmup:
            measured.append(begin.elapsed_time(end) / 1000)
    return statistics.median(measured)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16, device="cuda")


@dataclass(frozen=True)
class Ceilings:
    """What this GPU does at best: bytes/s of a great copy, FLOP/s of a great product."""

    copy: float
    product: float

    @staticmethod
    def measured() -> "Ceilings":
        big, a, b = normal(1 << 29), normal(8192, 8192), normal(8192, 8192)
        to = torch.empty_like(big)
        copy = 2 * big.nbytes / timed(lambda: to.copy_(big))
        product = 2 * 8192**3 / timed(lambda: a @ b)
        print(f"a copy of 1 GiB: {copy / 1e12:.2f} TB/s read and written")
        print(f"a product of 8192 x 8192 in bf16: {product / 1e12:.0f} TFLOP/s")
        return Ceilings(copy, product)


# ---------------------------------------------------------------- kernels


@dataclass(frozen=True)
class Kernel:
    """An operation at one size: its least bytes, and what torch would do."""

    name: str
    least: int
    """Bytes, each input read once and each output written once."""
    ours: Callable[["Inputs"], object]
    torchs: Callable[["Inputs"], object]


class Inputs:
    """Fresh random tensors for ``images`` images."""

    def __init__(self, images: int) -> None:
        rows = -(-images // IMAGES_PER_ROW)
        self.features = normal(images, 1 + GRID**2, VIT)
        self.tokens = normal(images, TOKENS, MERGED)
        self.gamma, self.beta = normal(MERGED), normal(MERGED)
        self.text = normal(SEQUENCE, rows, LLM)
        self.visual = normal(images, TOKENS, LLM)
        step = SEQUENCE // IMAGES_PER_ROW
        places = [[i // IMAGES_PER_ROW, 7 + i % IMAGES_PER_ROW * step] for i in range(images)]
        self.starts = torch.tensor(places, device="cuda")
        self.pixels = torch.randint(
            0, 256, (images, 3, IMAGE, IMAGE), dtype=torch.uint8, device="cuda"
        )
        self.shift, self.spread = (
            torch.tensor(values, device="cuda").view(1, 3, 1, 1)
            for values in ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
        )
        self.pixel_table = reference.normalization_table(BF16, self.pixels.device)
        gathered = reference.downsample_gather(self.features, *FOLD)
        _, self.mean, self.rstd = torch.native_layer_norm(
            gathered, [MERGED], self.gamma, self.beta, 1e-5
        )
        self.gathered = gathered
        shape = self.tokens.shape[:2]
        self.statistics = self.mean.float().view(shape), self.rstd.float().view(shape)

    def where(self) -> tuple[bool, int, int]:
        return True, 0, SEQUENCE


def plain_norm(x: Inputs) -> Tensor:
    gathered = reference.downsample_gather(x.features, *FOLD)
    return F.layer_norm(gathered, (MERGED,), x.gamma, x.beta, 1e-5)


def plain_norm_backward(x: Inputs) -> tuple[Tensor, ...]:
    grad, *weights = torch.ops.aten.native_layer_norm_backward(
        x.tokens, x.gathered, [MERGED], x.mean, x.rstd, x.gamma, x.beta, [True] * 3
    )
    return reference.downsample_gather_backward(grad, GRID, *FOLD), *weights


def plain_patchify(x: Inputs) -> Tensor:
    pixels = ((x.pixels.float() / 255.0 - x.shift) / x.spread).to(BF16)
    tiles = pixels.view(-1, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, GRID**2, 3 * PATCH**2)


def kernels(x: Inputs) -> list[Kernel]:
    """Every operation of csrc/cuda and what a model without it does."""
    return [*_patch_kernels(x), *_splice_kernels(x)]


def _patch_kernels(x: Inputs) -> list[Kernel]:
    """Those that work on patches, from pixels or features."""
    native_ops: Any = torch.ops.vila_mc
    features, tokens = x.features.nbytes, x.tokens.nbytes
    return [
        Kernel(
            "downsample_gather",
            2 * tokens,
            lambda x: native_ops.downsample_gather(x.features, *FOLD),
            lambda x: reference.downsample_gather(x.features, *FOLD),
        ),
        Kernel(
            "downsample_gather_backward",
            tokens + features,
            lambda x: native_ops.downsample_gather_backward(x.tokens, GRID, *FOLD),
            lambda x: reference.downsample_gather_backward(x.tokens, GRID, *FOLD),
        ),
        Kernel(
            "downsample_layernorm",
            2 * tokens,
            lambda x: native_ops.downsample_layernorm(x.features, x.gamma, x.beta, *FOLD, 1e-5),
            plain_norm,
        ),
        Kernel(
            "downsample_layernorm_backward",
            2 * tokens + features,
            lambda x: native_ops.downsample_layernorm_backward(
                x.tokens, x.features, x.gamma, *x.statistics, *FOLD
            ),
            plain_norm_backward,
        ),
        Kernel(
            "normalize_patchify",
            3 * x.pixels.nbytes,
            lambda x: native_ops.normalize_patchify(x.pixels, x.pixel_table, PATCH),
            plain_patchify,
        ),
    ]


def _splice_kernels(x: Inputs) -> list[Kernel]:
    """Those that put visual tokens among text, and their gradients."""
    native_ops: Any = torch.ops.vila_mc
    text, visual = x.text.nbytes, x.visual.nbytes
    return [
        Kernel(
            "splice_visual",
            2 * text,
            lambda x: native_ops.splice_visual(x.text, x.visual, x.starts, *x.where()),
            lambda x: reference.splice_visual(x.text, x.visual, x.starts, *x.where()),
        ),
        Kernel(
            "splice_visual_text_grad",
            2 * text - visual,
            lambda x: native_ops.splice_visual_text_grad(x.text, x.starts, TOKENS, *x.where()),
            lambda x: reference.splice_visual_text_grad(x.text, x.starts, TOKENS, *x.where()),
        ),
        Kernel(
            "splice_visual_visual_grad",
            2 * visual,
            lambda x: native_ops.splice_visual_visual_grad(x.text, x.starts, TOKENS, *x.where()),
            lambda x: reference.splice_visual_visual_grad(x.text, x.starts, TOKENS, *x.where()),
        ),
    ]


def kernel_figures(ceilings: Ceilings, images: int) -> None:
    """Microseconds, bytes/s, and how they compare."""
    sets = [Inputs(images) for _ in range(max(4, 96 // images))]
    rows: list[tuple[str, ...]] = [
        ("kernel", "images", "time", "GB/s", "of a 1 GiB copy", "of an equal copy", "torch")
    ]
    for kernel in kernels(sets[0]):
        try:
            ours = seconds([partial(kernel.ours, x) for x in sets])
            plain = seconds([partial(kernel.torchs, x) for x in sets])
            bytes_of = [
                torch.empty(kernel.least // 2, dtype=torch.uint8, device="cuda") for _ in sets
            ]
            equal = seconds([source.clone for source in bytes_of])
            del bytes_of
        except RuntimeError as error:
            rows.append((kernel.name, str(images), f"failed: {str(error).splitlines()[0]}"))
            continue
        rate = kernel.least / ours
        shares = (f"{rate / ceilings.copy:.2f}", f"{equal / ours:.2f}")
        rows.append(
            (
                *(kernel.name, str(images), f"{1e6 * ours:.1f} us", f"{rate / 1e9:,.0f}"),
                *shares,
                f"{plain / ours:.1f}x as long",
            )
        )
    table(*rows)


# ---------------------------------------------------------------- projector


def projector_figures(ceilings: Ceilings, images: int) -> None:
    """The projector forward against its two bare products, and a whole step against the chain."""
    shapes = [(MERGED,), (MERGED,), (LLM, MERGED), (LLM,), (LLM, LLM), (LLM,)]
    weights: list[Any] = [(normal(*s) * s[-1] ** -0.5).requires_grad_() for s in shapes]
    flops = 2 * images * TOKENS * LLM * (MERGED + LLM)
    grad = normal(images, TOKENS, LLM)
    rows = [("mlp_downsample", "images", "ours", "the chain of torch", "ratio")]

    def ours(features: Tensor) -> Tensor:
        return ops.mlp_downsample(features, *weights, factor=2, has_cls=True)  # type: ignore[misc]

    def chain(features: Tensor) -> Tensor:
        return reference.mlp_downsample(features, *weights, factor=2, has_cls=True, eps=1e-5)  # type: ignore[misc]

    def both(name: str, work: Callable[[Callable[[Tensor], Tensor]], object]) -> float:
        mine, theirs = (timed(partial(work, f)) for f in (ours, chain))
        rows.append(
            (
                *(name, str(images), f"{1e3 * mine:.3f} ms", f"{1e3 * theirs:.3f} ms"),
                f"{mine / theirs:.2f}",
            )
        )
        return mine

    with torch.no_grad():
        features = normal(images, 1 + GRID**2, VIT)
        forward = both("forward", lambda f: f(features))
        tokens, hidden = normal(images * TOKENS, MERGED), normal(images * TOKENS, LLM)
        bare = timed(
            lambda: (F.linear(tokens, *weights[2:4]), F.linear(hidden, *weights[4:])), rounds=9
        )
    for trained in (False, True):
        features = normal(images, 1 + GRID**2, VIT).requires_grad_(trained)
        inputs = [*weights, features] if trained else weights
        tower = "trained" if trained else "frozen"

        def step(f: Callable[[Tensor], Tensor], x: Tensor = features, i: Any = inputs) -> object:
            return torch.autograd.grad(f(x), i, grad)

        both(f"forward + backward, {tower} tower", step)
    kept = [kept_bytes(f, normal(images, 1 + GRID**2, VIT), weights) for f in (ours, chain)]
    rows.append(
        (
            *("kept for backward", str(images), f"{kept[0] / 2**20:,.0f} MiB"),
            *(f"{kept[1] / 2**20:,.0f} MiB", f"{kept[0] / kept[1]:.2f}"),
        )
    )
    table(*rows)
    print(
        f"mlp_downsample forward, {images} images: {flops / forward / 1e12:.0f} TFLOP/s; its two "
        f"products alone {flops / bare / 1e12:.0f}; one great product "
        f"{ceilings.product / 1e12:.0f}"
    )


def kept_bytes(function: Callable[[Tensor], Tensor], features: Tensor, weights: Any) -> int:
    """Bytes that the graph keeps between forward and backward, the weights aside."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(features)
    return sum(kept.values())


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[8, 64], help="default: 8 64")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return 0
    if native.missing("cuda") is not None:
        print(f"error: {native.missing('cuda')}")
        return 1
    torch.manual_seed(1)
    ceilings = Ceilings.measured()
    for figures in (kernel_figures, projector_figures):
        for images in arguments.images:
            figures(ceilings, images)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

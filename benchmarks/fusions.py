"""How near fused and plain operations come to fp64, and on a GPU how long they take.

Megatron-Core's SwiGLU and cross entropy in bf16: plain, fused as they are written, and compiled
by torch. Logits are of 32,000 tokens, and every other target is the most likely one.
"""

import os
from argparse import ArgumentParser
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from gpu_kernels import table
from torch import Tensor
from torch.nn import functional as F

Operation = Callable[[Tensor], Tensor]
Row = tuple[str, ...]


def swiglu_rows(tokens: int, width: int) -> list[Row]:
    """The language model's activation: [tokens, 2 * width] to [tokens, width]."""
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    def plain(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def fused(x: Tensor) -> Tensor:
        result: Tensor = bias_swiglu_impl(x, None, False, False)
        return result

    return _rows("SwiGLU", torch.randn(tokens, 2 * width), plain, fused, plain)


def cross_entropy_rows(tokens: int, vocabulary: int, spread: float) -> list[Row]:
    """The loss of logits [tokens, 1, vocabulary] with a standard deviation of ``spread``."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    logits = torch.randn(tokens, 1, vocabulary) * spread
    targets = torch.randint(0, vocabulary, (tokens, 1))
    targets[::2] = logits[::2].argmax(-1)
    group = dist.group.WORLD

    def plain(x: Tensor) -> Tensor:
        loss: Tensor = vocab_parallel_cross_entropy(x, targets.to(x.device), tp_group=group)
        return loss

    def fused(x: Tensor) -> Tensor:
        loss: Tensor = fused_vocab_parallel_cross_entropy(x, targets.to(x.device), group)
        return loss

    def exact(x: Tensor) -> Tensor:
        return F.cross_entropy(x[:, 0], targets[:, 0], reduction="none")[:, None]

    return _rows(f"cross entropy, logits of spread {spread:g}", logits, plain, fused, exact)


def _rows(
    name: str, values: Tensor, plain: Operation, fused: Operation, exact: Operation
) -> list[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounded = values.bfloat16()
    wanted = rounded.double().requires_grad_()
    expected = exact(wanted)
    gradients = torch.rand_like(expected)
    torch.autograd.backward(expected, gradients)
    assert wanted.grad is not None
    rows: list[Row] = []
    for kind, operation, is_compiled in (
        ("plain", plain, False),
        ("fused, as it is written", fused, False),
        ("fused, compiled", fused, True),
    ):
        x = rounded.clone().to(device).requires_grad_()
        with torch.compiler.set_stance("default" if is_compiled else "force_eager"):
            y = operation(x)
            torch.autograd.backward(y, gradients.to(y))
            took = _milliseconds(operation, x, gradients.to(y)) if device == "cuda" else ""
        assert x.grad is not None
        errors = (_error(y.detach(), expected.detach()), _error(x.grad, wanted.grad))
        rows.append((name, kind, *(f"{error:.1e}" for error in errors), took))
    return rows


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got.cpu().double() - wanted).norm() / wanted.norm())


def _milliseconds(operation: Operation, x: Tensor, gradients: Tensor, rounds: int = 20) -> str:
    start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    for turn in range(rounds + 3):
        if turn == 3:
            start.record()
        torch.autograd.backward(operation(x), gradients)
    end.record()
    end.synchronize()
    return f"{start.elapsed_time(end) / rounds:.3f} ms"


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    import vila_mc.parallel  # noqa: F401  # a quiet import of Megatron-Core

    os.environ["TORCHDYNAMO_DISABLE"] = "0"  # or nothing would be compiled without a GPU
    torch.manual_seed(1)
    has_gpu = torch.cuda.is_available()
    rows: list[Row] = [("operation", "how", "error", "error of its gradient", "both ways")]
    with TemporaryDirectory() as folder:
        meet = f"file://{folder}/meet"
        dist.init_process_group("nccl" if has_gpu else "gloo", meet, rank=0, world_size=1)
        rows += swiglu_rows(4096 if has_gpu else 64, 11008)
        for spread in (1.0, 3.0, 10.0):
            rows += cross_entropy_rows(4096 if has_gpu else 256, 32000, spread)
        dist.destroy_process_group()
    table(*rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

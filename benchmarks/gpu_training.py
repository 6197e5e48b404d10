"""Training steps on one GPU: time, tokens and images a second, memory, FLOP/s.

VILA-7B's widths in bf16, with 4 layers of the language model where it learns, and all 32 where the
connector alone does. Random data, rows of 4096 positions, 8 images each; one rank.
"""

import gc
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from gpu_kernels import Ceilings, table

from vila_mc.config.load import run_from_dict
from vila_mc.config.run import RunConfig
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.kernels import native
from vila_mc.model import megatron_config
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.step import Trainer

SEQUENCE = 4096
IMAGES = 8
TE = "transformer_engine"


@dataclass(frozen=True)
class Case:
    """A training step to be timed."""

    name: str
    layers: int
    trainable: tuple[str, ...] = ("connector", "language")
    samples_per_row: int = 1
    recompute: str = "none"
    sequence: int = SEQUENCE
    images: int = IMAGES
    """In a row."""
    rows: int = 4
    """In a step, each a microbatch."""
    new_lengths: bool = False
    """Packed samples of another length in every microbatch, as real ones have."""
    with_kernels: bool = True
    made_of: str = "torch"
    """What ``train.layers`` is."""
    fp8: str = "none"
    """Recipe of the language model's products."""
    is_fused: bool = True
    """SwiGLU and cross entropy."""

    def run(self, tiny: bool) -> RunConfig:
        model: dict[str, Any] = {"language": {"layers": self.layers}}
        if tiny:
            model = {
                "vision": dict(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=64),
                "language": dict(
                    layers=self.layers, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=131
                ),
            }
        return run_from_dict(
            {
                "model": model,
                "data": {"sequence_length": self.sequence},
                "optimizer": {"lr": 1e-5},
                "train": {
                    "trainable": list(self.trainable),
                    "global_batch": self.rows,
                    "micro_batch": 1,
                    "precision": "bf16",
                    "layers": self.made_of,
                    "fp8": {"recipe": self.fp8},
                    "recompute": self.recompute,
                    "steps": 100,
                },
            }
        )


CASES = [
    Case("rows of 1 sample", 4),
    Case("rows of 8 packed samples", 4, samples_per_row=8),
    Case("rows of 8 packed samples, new lengths", 4, samples_per_row=8, new_lengths=True),
    Case("rows of 1 sample, twins in plain torch", 4, with_kernels=False),
    Case("rows of 1 sample, nothing fused", 4, is_fused=False),
    Case("rows of 1 sample, recompute full", 4, recompute="full"),
    Case("rows of 1 sample, layers of Transformer Engine", 4, made_of=TE),
    Case("rows of 1 sample, FP8 by current scales", 4, made_of=TE, fp8="current"),
    Case("rows of 1 sample, FP8 by delayed scales", 4, made_of=TE, fp8="delayed"),
    Case("every part trained", 4, trainable=("vision", "connector", "language")),
    Case("the whole 7B, align", 32, trainable=("connector",), sequence=2048, images=4),
]


def microbatch(run: RunConfig, case: Case) -> Microbatch:
    """Random text around images, in samples that fill the row."""
    vision, visual = run.model.vision, run.model.visual_tokens()
    length = case.sequence
    tokens = torch.randint(3, run.model.language.vocab_size, (1, length))
    labels = torch.randint(3, run.model.language.vocab_size, (1, length))
    starts = [(3 * i + 1) * length // (3 * case.images) for i in range(case.images)]
    for start in starts:
        tokens[0, start : start + visual] = 0
        labels[0, start : start + visual - 1] = IGNORE_LABEL
    lengths = [length // case.samples_per_row] * case.samples_per_row
    if case.new_lengths:
        for first in range(0, len(lengths) - 1, 2):
            moved = int(torch.randint(-64, 64, ()))
            lengths[first : first + 2] = lengths[first] + moved, lengths[first] - moved
    side = vision.image_size
    return Microbatch(
        tokens=tokens,
        labels=labels,
        images=torch.randint(0, 256, (case.images, 3, side, side), dtype=torch.uint8),
        image_starts=torch.tensor([[0, start] for start in starts]),
        num_samples=case.samples_per_row,
        sample_lengths=(tuple(lengths),),
    )


def step_flops(run: RunConfig, case: Case) -> float:
    """FLOPs of a step that the mathematics asks for; what is computed twice counts once."""
    vision, language = run.model.vision, run.model.language
    h, e = language.width, vision.width
    kv = language.kv_heads * language.resolved_head_width()
    layer = 2 * h * h + 2 * h * kv + 3 * h * language.ffn
    weights = language.layers * layer + h * language.padded_vocab()
    sample = case.sequence // case.samples_per_row
    attention = language.layers * 2 * sample * h * case.sequence  # half of it masked
    patches = vision.positions()
    tower = vision.built_layers() * (4 * e * e + 2 * e * vision.ffn) + 3 * vision.patch_size**2 * e
    tower_attention = vision.built_layers() * 4 * patches * patches * e
    connector = run.model.visual_tokens() * (4 * e * h + h * h)
    trains = {part: part in case.trainable for part in ("vision", "connector", "language")}
    text = 2 * weights * case.sequence * (2 + trains["language"]) + 3 * attention
    images = (2 * tower * patches + tower_attention) * (3 if trains["vision"] else 1)
    # Forward, the weights' gradients, the second layer's input's, with a trained tower the first's.
    images += 2 * connector * (1 + trains["connector"])
    images += 2 * run.model.visual_tokens() * (h * h + 4 * e * h * trains["vision"])
    return case.rows * (text + case.images * images)


def training_figures(
    cases: Sequence[Case], product: float, *, tiny: bool, profile: bool, steps: int = 5
) -> None:
    """Milliseconds, tokens, memory and FLOPs of whole steps on one rank."""
    rows: list[tuple[str, ...]] = [
        (
            *("step", "weights, trained", "time", "tokens/s", "images/s", "peak memory"),
            *("TFLOP/s", "of a great product"),
        )
    ]
    for case in cases:
        run = case.run(tiny)
        try:
            with _as_asked(case), distributed(run.parallel, seed=1) as ranks:
                rows.append(_one_case(case, run, ranks, product, profile, steps))
        except Exception as error:  # one case that does not fit spares the others
            rows.append((case.name, f"failed: {type(error).__name__}: {error}"[:200]))
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        print(" | ".join(rows[-1]), flush=True)
    print()
    table(*rows)


def _nothing(*_: Any) -> dict[str, bool]:
    return {}


@contextmanager
def _as_asked(case: Case) -> Iterator[None]:
    """Without kernels or fusions where a case has none."""
    with ExitStack() as changes:
        if not case.with_kernels:
            changes.enter_context(mock.patch.object(native, "loaded", frozenset))
        if not case.is_fused:
            changes.enter_context(mock.patch.object(megatron_config, "fusion_options", _nothing))
        yield


def _one_case(
    case: Case, run: RunConfig, ranks: Ranks, product: float, profile: bool, steps: int
) -> tuple[str, ...]:
    has_gpu = ranks.device.type == "cuda"
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    with torch.device(ranks.device):  # the CPU would take minutes to draw 7B numbers
        stages = build_stages(run, ranks)
    trainer = Trainer(run, ranks, stages)
    measured = []
    for turn in range(steps + 2):
        batches = [microbatch(run, case) for _ in range(case.rows)]
        started = time.perf_counter()
        result = trainer.step(batches)  # ends by reading the loss, so the GPU is done
        if turn >= 2:
            measured.append(time.perf_counter() - started)
    if profile and has_gpu and case.with_kernels:
        _profile(case, trainer, batches)
    took = statistics.median(measured)
    sizes = [
        sum(w.numel() for s in stages for w in s.parameters() if w.requires_grad or a)
        for a in (True, False)
    ]
    peak = torch.cuda.max_memory_allocated() / 2**30 if has_gpu else 0.0
    rate = step_flops(run, case) / took
    assert result.loss < 100
    return (
        *(case.name, f"{sizes[0] / 1e9:.2f}B, {sizes[1] / 1e9:.2f}B", f"{1e3 * took:,.0f} ms"),
        *(f"{case.rows * case.sequence / took:,.0f}", f"{case.rows * case.images / took:,.1f}"),
        *(f"{peak:.1f} GiB", f"{rate / 1e12:.0f}", f"{rate / product:.2f}"),
    )


def _profile(case: Case, trainer: Trainer, batches: list[Microbatch]) -> None:
    """Where the time of one step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    with profiling(activities=[ProfilerActivity.CUDA]) as seen:  # what the CPU does is not shown
        trainer.step(batches)
    print(f"profile of a step: {case.name}")
    events = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    events = [e for e in events if str(e.device_type).endswith("CUDA")]
    events.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    print(f"  kernels {total / 1000:.1f} ms in all")
    for event in events[:22]:
        print(f"  {event.self_device_time_total / 1000:9.2f} ms {event.count:6}  {event.key[:110]}")


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="*", help="which steps (default: all)")
    parser.add_argument("--profile", action="store_true", help="say where a step's time goes")
    parser.add_argument("--tiny", action="store_true", help="at sizes that a CPU takes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("no GPU: nothing was measured")
        return 0
    torch.manual_seed(1)
    product = Ceilings.measured().product if torch.cuda.is_available() else 1e9
    if native.missing("cuda") is not None:
        print(f"warning: {native.missing('cuda')}")
    cases = CASES if arguments.cases is None else [CASES[i] for i in arguments.cases]
    training_figures(cases, product, tiny=arguments.tiny, profile=arguments.profile)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

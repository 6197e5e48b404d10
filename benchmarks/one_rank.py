"""A training step of one rank beside a plain loop of transformers and torch, with the same maths.

Tiny LLaVA-1.5s in fp32 on a CPU: transformers' LlavaForConditionalGeneration with torch's fused
AdamW and clipping, its pixels normalised beforehand; and this engine's Trainer with the same
weights, rows and learning rates. Both must give the same losses and gradient norms. Then they take
turns in one process (A B B A), and what is reported are the ratios of neighbouring steps: their
median, and where it lies with a confidence of 95 %.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from claims import Claim, parser, report

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vila_mc.config.load import run_from_dict
from vila_mc.config.model import ModelConfig
from vila_mc.config.parallel import ParallelConfig
from vila_mc.config.run import RunConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.formats.hf_llava import FORMAT
from vila_mc.convert.weights import read_json
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.kernels.reference import normalize_images
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.optimizer import rate_of
from vila_mc.train.step import Trainer

Step = Callable[[], tuple[float, float]]
"""One optimizer step: its loss and gradient norm."""

PATCH, VISION_LAYERS, LAYERS = 14, 3, 4
VOCABULARY, IMAGE_TOKEN = 2048, 2
STEPS_OF_THE_SCHEDULE = 10_000
PARITY_STEPS = PROFILED_STEPS = 3
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4
"""Relative, as in the proofs of layouts."""


@dataclass(frozen=True, slots=True)
class Case:
    """A tiny LLaVA and its batch; every row begins with an image."""

    width: int
    length: int
    rows: int
    """Of a microbatch."""
    microbatches: int
    grid: int = 4
    """Patches along a side of an image; each becomes a visual token."""

    def name(self) -> str:
        """As the table says it."""
        return f"width {self.width}, {self.microbatches} x {self.rows} rows of {self.length}"


CASES = (
    Case(width=96, length=96, rows=16, microbatches=2),
    Case(width=256, length=256, rows=4, microbatches=1),
    Case(width=256, length=256, rows=4, microbatches=4),
)
"""The first is as small as the quickstart's, where calls count; in the others memory does."""


def main() -> int:
    """Compare, measure; two lines of the table for each case."""
    options = parser(__doc__)
    options.add_argument("--pairs", type=int, default=40, help="pairs of steps (default: 40)")
    options.add_argument("--profile", action="store_true", help="print what takes the time instead")
    arguments = options.parse_args()
    claims: list[Claim] = []
    with distributed(ParallelConfig(), seed=1) as ranks:
        for case in CASES:
            theirs, batches = _llava(case), _microbatches(case)
            with TemporaryDirectory() as folder:
                trainer = _trainer(case, theirs, Path(folder), ranks)
            steps = _our_step(trainer, batches), _their_step(theirs, trainer.config, batches)
            _require_equal(case, *steps)
            if arguments.profile:
                _print_profiles(case, *steps)
            else:
                claims += _measured(case, *steps, arguments.pairs)
    return report(claims, arguments) if claims else 0


# ---------------------------------------------------------------- the two loops


def _llava(case: Case) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=case.width // 2,
        intermediate_size=2 * case.width,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=case.grid * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=case.width,
        intermediate_size=case.width * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=case.length,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,  # or it would run a layer that nobody reads
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").train()


def _trainer(
    case: Case, theirs: LlavaForConditionalGeneration, folder: Path, ranks: Ranks
) -> Trainer:
    """This engine's, with their weights."""
    theirs.save_pretrained(folder)
    where = folder / "config.json"
    values = ConfigValues(read_json(where), where)
    found = FORMAT.read(folder, values, "resize", trust_pickle=False)
    config = _config(case, found.model)
    (stage,) = build_stages(config, ranks)
    report = stage.load_state_dict(
        {name: tensor.read() for name, tensor in found.tensors.items()}, strict=False
    )
    assert not report.unexpected_keys
    assert all(name.endswith("_extra_state") for name in report.missing_keys)
    return Trainer(config, ranks, [stage])


def _config(case: Case, model: ModelConfig) -> RunConfig:
    return run_from_dict(
        {
            "model": model,
            "data": {"sequence_length": case.length},
            "train": {
                "precision": "fp32",
                "global_batch": case.rows * case.microbatches,
                "micro_batch": case.rows,
                "trainable": ["vision", "connector", "language"],
                "steps": STEPS_OF_THE_SCHEDULE,
            },
            "optimizer": {"weight_decay": 0.05},
        }
    )


def _our_step(trainer: Trainer, batches: Sequence[Microbatch]) -> Step:
    def step() -> tuple[float, float]:
        result = trainer.step(batches)
        return result.loss, result.grad_norm

    return step


def _their_step(
    model: LlavaForConditionalGeneration,
    config: RunConfig,
    batches: Sequence[Microbatch],
) -> Step:
    """What a person writes who has transformers and torch."""
    settings = config.optimizer
    weights = [weight for name, weight in model.named_parameters() if not _is_unread(name)]
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=settings.epsilon, fused=True)
    inputs = [_their_inputs(batch) for batch in batches]
    trained = sum(int((batch.labels != IGNORE_LABEL).sum()) for batch in batches)
    steps = 0

    def step() -> tuple[float, float]:
        nonlocal steps
        steps += 1
        for group in optimizer.param_groups:
            group["lr"] = rate_of(config, steps)
        optimizer.zero_grad()
        losses = []
        for each in inputs:
            loss = model(**each, num_items_in_batch=trained, use_cache=False).loss
            loss.backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip_grad)
        optimizer.step()
        return float(sum(losses)), float(norm)

    return step


def _is_unread(name: str) -> bool:
    """CLIP's last norm, which no patch passes through."""
    return "post_layernorm" in name


def _microbatches(case: Case) -> list[Microbatch]:
    """Random rows, each an image and a text of which the first half is not trained."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(case.microbatches):
        shape = (case.rows, case.length)
        tokens = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, shape, generator=draw)
        labels = tokens.roll(-1, dims=1)
        labels[:, : case.length // 2] = labels[:, -1] = IGNORE_LABEL
        tokens[:, 1 : 1 + case.grid**2] = 0
        side = case.grid * PATCH
        images = torch.randint(0, 256, (case.rows, 3, side, side), generator=draw).byte()
        starts = torch.tensor([[row, 1] for row in range(case.rows)])
        made.append(Microbatch(tokens, labels, images, starts, num_samples=case.rows))
    return made


def _their_inputs(batch: Microbatch) -> dict[str, Tensor]:
    tokens = batch.tokens.clone()
    tokens[tokens == 0] = IMAGE_TOKEN
    pixels = normalize_images(batch.images, torch.float32)
    return {
        "input_ids": tokens,
        "pixel_values": pixels,
        "labels": batch.labels,
        "shift_labels": batch.labels,
    }


# ---------------------------------------------------------------- compared


def _require_equal(case: Case, ours: Step, theirs: Step) -> None:
    """Some steps of both from the same weights."""
    for number in range(1, PARITY_STEPS + 1):
        (our_loss, our_norm), (their_loss, their_norm) = ours(), theirs()
        is_same = math.isclose(our_loss, their_loss, rel_tol=LOSS_TOLERANCE)
        if not is_same or not math.isclose(our_norm, their_norm, rel_tol=NORM_TOLERANCE):
            sys.exit(
                f"{case.name()}, step {number}: loss {our_loss:.7f} here, {their_loss:.7f} there; "
                f"gradient norm {our_norm:.6f} here, {their_norm:.6f} there."
            )


def _measured(case: Case, ours: Step, theirs: Step, pairs: int) -> Iterator[Claim]:
    """Ratios of CPU time and of elapsed time."""
    clocks = (time.process_time, time.perf_counter)
    ratios: tuple[list[float], list[float]] = ([], [])
    taken: list[float] = []
    for pair in range(pairs):
        order = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        spent = {step: _times(step, clocks) for step in order}
        for found, mine, other in zip(ratios, spent[ours], spent[theirs], strict=True):
            found.append(mine / other)
        taken.append(spent[ours][0])
    for what, found in zip(("CPU time", "elapsed time"), ratios, strict=True):
        low, high = _interval(found)
        is_primary = what == "CPU time"
        yield Claim(
            f"{case.name()}: {what} [{low:.3f} to {high:.3f}]",
            statistics.median(found),
            "x",
            target=1.0 if is_primary else None,
            better="lower",
            how=f"median of {pairs} pairs; a step of ours takes {statistics.median(taken):.3f} s",
        )


def _times(step: Step, clocks: Sequence[Callable[[], float]]) -> tuple[float, ...]:
    before = [clock() for clock in clocks]
    step()
    return tuple(clock() - start for clock, start in zip(clocks, before, strict=True))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with a confidence of 95 %, by order statistics (the sign test)."""
    n, below, tail = len(values), 0, 0.0
    while below < n // 2 and tail + math.comb(n, below) / 2**n <= 0.025:
        tail += math.comb(n, below) / 2**n
        below += 1
    ranked = sorted(values)
    return ranked[max(below - 1, 0)], ranked[min(n - below, n - 1)]


def _print_profiles(case: Case, ours: Step, theirs: Step) -> None:
    for name, step in (("ours", ours), ("theirs", theirs)):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(PROFILED_STEPS):
                step()
        print(f"\n{case.name()}, {name}, {PROFILED_STEPS} steps")
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    sys.exit(main())

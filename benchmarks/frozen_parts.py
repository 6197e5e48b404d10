"""What a frozen part saves: time and memory of a step against training everything, and FLOPs left.

One CPU rank in fp32, a language model of 8 layers under a tower of 8, proportioned as at 7B. The
cases take turns, step by step; the time is the processor's, so that other processes disturb little.
FLOPs are counted by torch while a step runs. Memory is counted, too: what autograd keeps of one
microbatch, gradients, and the optimizer's state.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator

from claims import Claim, median_ratio, parser, report

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.flop_counter import FlopCounterMode

from vila_mc.config.load import run_from_dict
from vila_mc.config.run import RunConfig
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

CASES = {
    "everything": ("vision", "connector", "language"),
    "tower frozen": ("connector", "language"),
    "align": ("connector",),
    "upper half alone": ("language.layers[4:]", "language.norm", "language.head"),
}
ROWS, LENGTH, IMAGES = 2, 128, 2
"""Of a step, positions of a row, images in it."""
MOST_OVER_FLOPS = 1.15
"""Share of the time over share of the FLOPs. Products are not all that a step does: a frozen part
has no backward pass of its norms and no update either, a forward pass does without neither."""
MIB = 2**20


def main() -> int:
    """Measure; the shares of FLOPs, time and memory of each case."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="steps of each (default: 7)")
    arguments = options.parse_args()
    seconds, flops, memory = _measure(arguments.rounds)
    how = f"CPU time of one thread, median of {arguments.rounds} turns"
    claims = []
    for name in CASES:
        share = flops[name] / flops["everything"]
        of_time = median_ratio(seconds[name], seconds["everything"])
        claims.append(
            Claim(f"{name}: step", 1000 * statistics.median(seconds[name]), "ms", how=how)
        )
        if name != "everything":
            over = (f"{name}: time over FLOPs, shares", of_time / share, "x", MOST_OVER_FLOPS)
            claims += [
                Claim(f"{name}: FLOPs, of everything's", share, "x"),
                Claim(f"{name}: time, of everything's", of_time, "x", how=how),
                Claim(*over, better="lower"),
            ]
        claims += [
            Claim(f"{name}: {what}", size / MIB, "MiB") for what, size in memory[name].items()
        ]
    report(claims, arguments)
    return int(any(claim.holds() is False for claim in claims))


def _measure(
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, dict[str, int]]]:
    """Seconds of each turn, FLOPs of a step and bytes by kind, by the name of the case."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    flops, memory = {}, {}
    with distributed(_run("align").parallel, seed=1) as ranks:
        trainers = {}
        for name in CASES:
            config = _run(name)
            trainers[name] = trainer = Trainer(config, ranks, build_stages(config, ranks))
            batches = [_microbatch(config)]
            with FlopCounterMode(display=False) as counter:
                trainer.step(batches)
            flops[name] = counter.get_total_flops()
            memory[name] = {
                "kept by autograd": _kept_bytes(trainer, batches[0]),
                "gradients": sum(_gradient_bytes(trainer)),
                "state of the optimizer": sum(_moment_bytes(trainer)),
            }
        for _ in range(rounds):
            for name, trainer in trainers.items():
                started = time.process_time()
                trainer.step(batches)
                seconds[name].append(time.process_time() - started)
    return seconds, flops, memory


def _run(name: str) -> RunConfig:
    return run_from_dict(
        {
            "model": {
                "vision": dict(image_size=112, width=256, layers=9, heads=4, ffn=1024),
                "language": dict(
                    layers=8, width=512, ffn=1376, heads=8, kv_heads=8, vocab_size=4096
                ),
            },
            "data": {"sequence_length": LENGTH},
            "train": {
                "trainable": list(CASES[name]),
                "global_batch": ROWS,
                "micro_batch": ROWS,
                "precision": "fp32",
            },
        }
    )


def _microbatch(config: RunConfig) -> Microbatch:
    """Random text around images."""
    draw = torch.Generator().manual_seed(0)
    words, visual = config.model.language.vocab_size, config.model.visual_tokens()
    tokens, labels = (torch.randint(3, words, (ROWS, LENGTH), generator=draw) for _ in range(2))
    starts = [[row, 2 + image * (visual + 1)] for row in range(ROWS) for image in range(IMAGES)]
    for row, start in starts:
        tokens[row, start : start + visual] = 0
        labels[row, start : start + visual - 1] = IGNORE_LABEL
    side = config.model.vision.image_size
    return Microbatch(
        tokens=tokens,
        labels=labels,
        images=torch.randint(0, 256, (len(starts), 3, side, side), generator=draw).byte(),
        image_starts=torch.tensor(starts),
        num_samples=ROWS,
    )


def _kept_bytes(trainer: Trainer, batch: Microbatch) -> int:
    """Of the tensors that autograd keeps of a forward pass, weights left out, each once."""
    (stage,) = trainer.stages
    weights = {weight.untyped_storage().data_ptr() for weight in stage.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stage(batch)  # alive, and so is all that it keeps
    assert loss.requires_grad
    return sum(kept.values())


def _gradient_bytes(trainer: Trainer) -> Iterator[int]:
    for stage in trainer.wrapped:
        yield from (buffer.grad_data.nbytes for buffer in stage.buffers)


def _moment_bytes(trainer: Trainer) -> Iterator[int]:
    for part in trainer.optimizer.chained_optimizers:
        for state in part.optimizer.state.values():
            yield from (state[name].nbytes for name in ("exp_avg", "exp_avg_sq"))


if __name__ == "__main__":
    sys.exit(main())

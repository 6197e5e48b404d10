"""Does a GPU give the same gradients twice, at VILA-7B's widths?

Two backward passes over the same microbatches, compared bit for bit: as training runs, and with
``train.deterministic``.
"""

import time
from argparse import ArgumentParser

import torch
from gpu_kernels import table
from gpu_training import CASES, Case, microbatch
from torch import Tensor

from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

PASSES = 4
"""That are timed together."""


def repeat_figures(case: Case, tiny: bool) -> list[tuple[str, ...]]:
    """A row without and one with ``train.deterministic``."""
    return [_row(case, tiny, is_strict) for is_strict in (False, True)]


def _row(case: Case, tiny: bool, is_strict: bool) -> tuple[str, ...]:
    run = case.run(tiny)
    with distributed(run.parallel, seed=1, deterministic=is_strict) as ranks:
        with torch.device(ranks.device):
            stages = build_stages(run, ranks)
        trainer = Trainer(run, ranks, stages)
        batches = [microbatch(run, case).to(ranks.device) for _ in range(case.rows)]

        def gradients() -> dict[str, Tensor]:
            trainer._forward_backward(batches)
            named = stages[0].named_parameters()
            return {name: w.main_grad.clone() for name, w in named if w.requires_grad}

        first, second = gradients(), gradients()
        started = time.perf_counter()
        for _ in range(PASSES):
            last = gradients()
        float(next(iter(last.values())).sum())  # waits for the GPU
        took = (time.perf_counter() - started) / PASSES
    differ = [key for key in first if not torch.equal(first[key], second[key])]
    worst = max(
        float((first[key] - second[key]).abs().max() / first[key].abs().max().clamp(min=1e-30))
        for key in first
    )
    kind = "deterministic" if is_strict else "as trained"
    return case.name, kind, f"{len(differ)} of {len(first)}", f"{worst:.1e}", f"{1e3 * took:.0f} ms"


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="at sizes that a CPU takes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("no GPU: nothing was measured")
        return 0
    torch.manual_seed(1)
    rows: list[tuple[str, ...]] = [
        ("rows", "algorithms", "gradients that differ", "of their greatest", "a pass")
    ]
    for case in (CASES[0], CASES[2]):
        rows += repeat_figures(case, arguments.tiny)
    table(*rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

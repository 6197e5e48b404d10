"""Training steps of the quickstart's model on CPU ranks: by micro-batch, threads and layout.

Rows of 96 positions with one image each, as in the quickstart's sft, fp32, every part trained, a
global batch of 64 rows. Micro-batches of one rank take turns in one process, step by step; layouts
are started in turns. On a machine that does something else, ``--cpu-time`` counts the processor's
time of each rank, and leaves out where ranks wait for each other.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from claims import Claim, parser, report

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine's cores
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

import torch

from tests.support.ranks import run_ranks
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples/quickstart"
ROWS = 64
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
Clock = Callable[[], float]
LAYOUTS = {
    "data 2": {"train.micro_batch": 32},
    "pipeline 2": {"parallel.pipeline": 2, "train.micro_batch": 8},
    "tensor 2": {"parallel.tensor": 2, "train.micro_batch": 32},
}
"""Of two ranks, each with the micro-batch that is fastest there."""


def main() -> int:
    """Measure; one line of the table each."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=12, help="steps of each (default: 12)")
    options.add_argument("--cpu-time", action="store_true", help="count each rank's CPU time")
    arguments = options.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    of = "CPU time of a rank, " if arguments.cpu_time else ""
    how = f"{of}median of {arguments.steps} steps of {ROWS} rows, OMP_NUM_THREADS=1"
    claims = []
    (speeds,) = run_ranks(1, _by_micro_batch, clock, arguments.steps)
    for micro_batch, speed in speeds.items():
        claims.append(Claim(f"1 rank, micro-batch {micro_batch}", speed, "samples/s", how=how))
    (threaded,) = run_ranks(1, _of_layout, {"train.micro_batch": 32}, clock, arguments.steps, 2)
    threads = "the same with OMP_NUM_THREADS=2"
    claims.append(Claim("1 rank of 2 threads, micro-batch 32", threaded, "samples/s", how=threads))
    rounds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(3):
        for name, layout in LAYOUTS.items():
            rounds[name].append(min(run_ranks(2, _of_layout, layout, clock, arguments.steps, 1)))
    for name, found in rounds.items():
        rows = LAYOUTS[name]["train.micro_batch"]
        what = f"2 ranks, {name}, micro-batch {rows}"
        claims.append(Claim(what, statistics.median(found), "samples/s", how=f"{how}, 3 starts"))
    return report(claims, arguments)


def _by_micro_batch(clock: Clock, steps: int) -> dict[int, float]:
    """Samples a second of one rank."""
    configs = [config_of({"train.micro_batch": rows}) for rows in MICRO_BATCHES]
    with distributed(configs[0].parallel, seed=1) as ranks:
        trainers = [Trainer(config, ranks, build_stages(config, ranks)) for config in configs]
        batches = [microbatches_of(config, 1) for config in configs]
        seconds: list[list[float]] = [[] for _ in configs]
        for _ in range(steps + 1):  # the first warms up
            for index, trainer in enumerate(trainers):
                started = clock()
                trainer.step(batches[index])
                seconds[index].append(clock() - started)
    return {
        rows: ROWS / statistics.median(mine[1:])
        for rows, mine in zip(MICRO_BATCHES, seconds, strict=True)
    }


def _of_layout(options: dict[str, int], clock: Clock, steps: int, threads: int) -> float:
    """Samples a second of this rank and the others together."""
    torch.set_num_threads(threads)
    config = config_of(options)
    with distributed(config.parallel, seed=1, timeout_minutes=5) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        batches = microbatches_of(config, ranks.layout.data)
        seconds = []
        for _ in range(steps + 1):
            started = clock()
            trainer.step(batches)
            seconds.append(clock() - started)
    return ROWS / statistics.median(seconds[1:])


def config_of(options: dict[str, int]) -> RunConfig:
    recipes = [EXAMPLES / name for name in ("model.yaml", "sft.yaml")]
    return load_run(recipes, {"train.global_batch": ROWS, **options})


def microbatches_of(config: RunConfig, data_size: int) -> list[Microbatch]:
    """One rank's share of random rows."""
    rows, length = config.train.rows_of_a_pass(), config.data.sequence_length
    side, words = config.model.vision.image_size, config.model.language.vocab_size
    draw = torch.Generator().manual_seed(0)
    return [
        Microbatch(
            tokens=torch.randint(3, words, (rows, length), generator=draw),
            labels=torch.randint(3, words, (rows, length), generator=draw),
            images=torch.randint(0, 256, (rows, 3, side, side), generator=draw).byte(),
            image_starts=torch.tensor([[row, 2] for row in range(rows)]),
            num_samples=rows,
        )
        for _ in range(ROWS // rows // data_size)
    ]


if __name__ == "__main__":
    sys.exit(main())

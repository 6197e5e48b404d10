"""What ``train.check_replicas_every`` costs: comparing all copies of weights, against a step.

In CPU time, on one rank: it computes all that it does on many, and the all-reduce sends nothing.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from claims import Claim, parser, report

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.model.build import build_stages, count_weights
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


def main() -> int:
    """Measure on one rank."""
    made = parser(__doc__)
    made.add_argument("--width", type=int, default=768, help="width of the language model")
    made.add_argument("--layers", type=int, default=8, help="layers of the language model")
    made.add_argument("--rounds", type=int, default=8, help="comparisons, and steps")
    arguments = made.parse_args()
    language = dict(
        layers=arguments.layers,
        width=arguments.width,
        ffn=3 * arguments.width,
        heads=8,
        kv_heads=8,
        vocab_size=131,
        max_positions=64,
    )
    train = {"check_replicas_every": 10**6, "precision": "bf16"}
    config = tiny_run(model={"language": language}, train=train)
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        num_weights = count_weights(stages, ranks)
        trainer = Trainer(config, ranks, stages)
        batches = tiny_microbatches(config, 0, 1)
        trainer.step(batches)
        pairs = [
            (_ms(lambda: trainer.copies.require_equal("now")), _ms(lambda: trainer.step(batches)))
            for _ in range(arguments.rounds)
        ]
    compare, step = (statistics.median(times) for times in zip(*pairs, strict=True))
    what = f"{num_weights:,} weights in bf16"
    claims = [
        Claim(f"comparing copies of {what}", compare, "ms"),
        Claim("the same, of a weight", 1e6 * compare / num_weights, "ns"),
        Claim(f"a step of {len(batches)} rows of {config.data.sequence_length}", step, "ms"),
    ]
    return report(claims, arguments)


def _ms(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    raise SystemExit(main())

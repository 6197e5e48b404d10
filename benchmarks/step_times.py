"""What it costs to say where a step's time goes: the marks, and bringing them together.

The quickstart's model on two CPU ranks, as in ``cpu_training.py``. Steps with and without take
turns in one process. Where the machine does something else, too, ``--cpu-time`` counts the
processor's time.
"""

import statistics
import time
from collections.abc import Callable

from claims import Claim, parser, report
from cpu_training import LAYOUTS, config_of, microbatches_of

from tests.support.ranks import run_ranks
from vila_mc.model.build import build_stages
from vila_mc.observe.step_times import SharedTimes
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer
from vila_mc.train.watch import gather_times

Clock = Callable[[], float]


def main() -> int:
    """Measure; one line of the table for each layout."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=20, help="steps of each kind (default: 20)")
    options.add_argument("--cpu-time", action="store_true", help="count each rank's CPU time")
    arguments = options.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    claims = []
    for name, layout in LAYOUTS.items():
        measured = run_ranks(2, _measure, layout, clock, arguments.steps)
        with_them, without, apart = (statistics.mean(each) for each in zip(*measured, strict=True))
        ratio = with_them / without - 1
        how = f"medians of {arguments.steps} steps of each kind by turns, mean of both ranks"
        what = f"2 ranks, {name}: a step of {1000 * without:,.0f} ms takes longer by"
        claims.append(Claim(what, 100 * ratio, "%", how=how))
        share = 100 * apart / without
        what = f"2 ranks, {name}: marks and what brings them together, timed apart"
        claims.append(Claim(what, share, "%", target=1.0, better="lower", how=how))
    return report(claims, arguments)


def _measure(layout: dict[str, int], clock: Clock, steps: int) -> tuple[float, float, float]:
    """Seconds of a step whose times are taken, of one whose are not, and of taking them alone."""
    config = config_of(layout)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    apart: list[float] = []
    with distributed(config.parallel, seed=1, timeout_minutes=5) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        batches = microbatches_of(config, ranks.layout.data)
        a_span = _seconds_of_a_span(trainer, clock)
        for number in range(2 * steps + 2):  # the first two warm up
            is_timed, started = number % 2 == 0, clock()
            if is_timed:
                trainer.spans.begin()
                trainer.step(batches)
                ended = clock()
                taken = trainer.spans.end()
                of_ranks, _ = gather_times(ranks, *taken)
                SharedTimes.of(of_ranks, has_stages=ranks.layout.pipeline > 1)
                apart.append(clock() - ended + len(taken[1]) * a_span)
            else:
                trainer.step(batches)
            if number > 1:
                seconds[is_timed].append(clock() - started)
    medians = (statistics.median(each) for each in (seconds[True], seconds[False], apart[1:]))
    with_them, without, alone = medians
    return with_them, without, alone


def _seconds_of_a_span(trainer: Trainer, clock: Clock) -> float:
    """A mark at its beginning and at its end."""
    trainer.spans.begin()
    started = clock()
    for _ in range(1000):
        with trainer.spans.span("marked"):
            pass
    seconds = (clock() - started) / 1000
    trainer.spans.end()
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())

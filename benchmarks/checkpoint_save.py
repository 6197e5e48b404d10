"""How long training stands still while a checkpoint is saved: in the background, and not.

Both saves write the same state, turn by turn, in one process. "Stands still" is the time in which
no step can run: for a background save, the copy at its start and the renaming at its end.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from claims import Claim, median_ratio, parser, report

from vila_mc.config.run import RunConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the writer needs a core as well
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model.build import build_stages, count_weights
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

TARGET_SHARE = 0.15


@dataclass
class Saves:
    """Seconds of each round."""

    synchronous: list[float]
    stall: list[float]
    step: list[float]
    step_while_writing: list[float]
    num_bytes: int = 0


def main() -> int:
    """Measure on one rank."""
    arguments = _arguments()
    output = Path(tempfile.mkdtemp(prefix="checkpoint-save-", dir=arguments.directory))
    try:
        config = _run(output, arguments.width, arguments.layers)
        with distributed(config.parallel, seed=1) as ranks:
            stages = build_stages(config, ranks)
            num_weights = count_weights(stages, ranks)
            trainer = Trainer(config, ranks, stages)
            saves = _measure(trainer, arguments.rounds)
    finally:
        shutil.rmtree(output)
    return report(_claims(saves, num_weights), arguments)


def _arguments() -> Namespace:
    made = parser(__doc__)
    made.add_argument("--width", type=int, default=768, help="width of the language model")
    made.add_argument("--layers", type=int, default=8, help="layers of the language model")
    made.add_argument("--rounds", type=int, default=4, help="saves of each kind")
    made.add_argument("--directory", type=Path, help="where to save (default: the temporary one)")
    return made.parse_args()


def _run(output: Path, width: int, layers: int) -> RunConfig:
    language = dict(
        layers=layers,
        width=width,
        ffn=3 * width,
        heads=8,
        kv_heads=8,
        vocab_size=131,
        max_positions=64,
    )
    train = {"output": str(output), "keep_last": 1}
    return tiny_run(model={"language": language}, train=train)


def _measure(trainer: Trainer, rounds: int) -> Saves:
    batches = tiny_microbatches(trainer.config, 0, 1)
    saves = Saves([], [], [], [])
    for turn in range(rounds + 1):  # the first warms up
        step = _seconds(lambda: trainer.step(batches))
        synchronous = _seconds(partial(_save_now, trainer, 2 * turn))
        started = time.perf_counter()
        saving = _save(trainer, 2 * turn + 1, True)
        stall, steps = time.perf_counter() - started, []
        while not saving.is_written():
            steps.append(_seconds(lambda: trainer.step(batches)))
        stall += _seconds(saving.finish)
        if turn:
            saves.synchronous.append(synchronous)
            saves.stall.append(stall)
            saves.step.append(step)
            saves.step_while_writing.append(statistics.median(steps or [step]))
    (newest,) = trainer.config.train.output.glob("step-*")
    saves.num_bytes = sum(file.num_bytes for file in Manifest.read(newest).files.values())
    return saves


def _save_now(trainer: Trainer, step: int) -> None:
    _save(trainer, step, False).finish()


def _save(trainer: Trainer, step: int, in_background: bool) -> PendingSave:
    manifest = Manifest(
        step=step, samples_seen=0, config=trainer.config, layout=None, versions=versions()
    )
    return PendingSave(
        manifest,
        trainer.ranks,
        trainer.stages,
        trainer.optimizer,
        in_background=in_background,
    )


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _claims(saves: Saves, num_weights: int) -> list[Claim]:
    how = f"one rank, {num_weights / 1e6:.1f}M weights in fp32, {len(saves.stall)} rounds, medians"
    synchronous, stall = statistics.median(saves.synchronous), statistics.median(saves.stall)
    return [
        Claim(
            "stall of a background save / a synchronous save",
            median_ratio(saves.stall, saves.synchronous),
            "",
            target=TARGET_SHARE,
            better="lower",
            how=how + "; ratio round by round",
        ),
        Claim("synchronous save", 1000 * synchronous, "ms", how=how),
        Claim("stall of a background save", 1000 * stall, "ms", how=how),
        Claim("size of a checkpoint", saves.num_bytes / 2**20, "MiB", how=how),
        Claim(
            "a step while a checkpoint is written / a step",
            median_ratio(saves.step_while_writing, saves.step),
            "",
            how=how + "; the writer shares the cores and the memory with the step",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""Time to open a set of 1 million samples and read its first batch.

Each measurement is a fresh process with a warm page cache that has imported the code and read a
config, as every run has; CPU time, so that other load does not decide. The index of the set is
whole; of its data only what is read is there.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from claims import Claim, parser, report
from mixes import jpeg, make_tokenizer, pairs, write_set

from vila_mc.config.data import DataConfig
from vila_mc.data.batches.blend import Blend

SAMPLES = 1_000_000
PROCESSES = 9


def main() -> int:
    """Measure in fresh processes and print the table."""
    made = parser(__doc__)
    made.add_argument(
        "--child", type=Path, help="measure in this process, for the benchmark itself"
    )
    arguments = made.parse_args()
    if arguments.child is not None:
        print(json.dumps(_measure(arguments.child)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = pairs(np.random.default_rng(0), SAMPLES)
        _, first = Blend.by_weights([1], [SAMPLES], DataConfig().seed).choose(0, 1)
        write_set(folder / "set", sizes, make_tokenizer(folder), jpeg(0), first.tolist())
        index_mb = (folder / "set.idx").stat().st_size / 1e6
        runs = [_child(folder) for _ in range(PROCESSES)]
    how = f"median of {PROCESSES} processes, best {{:.0f}} ms; index of {index_mb:.0f} MB"
    return report(
        [
            _claim("open and first batch", [run["batch"] for run in runs], how, 50),
            _claim("  of which open and check the index", [run["open"] for run in runs], how),
            _claim("open and first packed batch planned", [run["packed"] for run in runs], how, 50),
            _claim("imports and config, for comparison", [run["imports"] for run in runs], how),
        ],
        arguments,
    )


def _claim(what: str, values: list[float], how: str, target: float | None = None) -> Claim:
    median = statistics.median(values)
    return Claim(what, median, "ms", target, "lower", how.format(min(values)))


def _child(folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(folder)]
    times: dict[str, float] = json.loads(subprocess.check_output(command))
    return times


def _measure(folder: Path) -> dict[str, float]:
    started = time.process_time()
    from vila_mc.config.load import run_from_dict
    from vila_mc.data.batches.loader import TrainingData
    from vila_mc.data.indexed.reader import IndexedReader

    blend = [{"path": folder / "set"}]
    data_options = {"blend": blend, "tokenizer": folder / "tokenizer.model", "workers": 0}
    config = run_from_dict({"data": data_options, "model": {"language": {"vocab_size": 300}}})
    imports = time.process_time() - started
    batch = dict(micro_batch=1, data_rank=0, data_size=1)
    started = time.process_time()
    with TrainingData(
        config.data, config.model, global_batch=1, needs_images=True, **batch
    ) as data:
        next(data.iterate(0))
    whole = time.process_time() - started
    started = time.process_time()
    IndexedReader(folder / "set")
    opened = time.process_time() - started
    started = time.process_time()
    with TrainingData(
        dataclasses.replace(config.data, packing=True),
        config.model,
        global_batch=128,
        needs_images=False,
        **batch,
    ) as data:
        data._draws(0)
    packed = time.process_time() - started
    times = {"imports": imports, "batch": whole, "open": opened, "packed": packed}
    return {name: 1000 * seconds for name, seconds in times.items()}


if __name__ == "__main__":
    sys.exit(main())

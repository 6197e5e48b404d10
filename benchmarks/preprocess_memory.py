"""Memory of preprocessing: 10 million records by the whole tool, all its processes together.

    python benchmarks/preprocess_memory.py [--json FILE]

Every record is a short text of its own, so that the index is as large as it can be for its data.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.claims import Claim, parser, report
from vila_mc.data.manifest import read_manifest
from vila_mc.data.tokenizer import train_tokenizer
from vila_mc.errors import SetupError, run_cli

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
EVERY_S = 0.2


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--records", type=int, default=10_000_000, help="default: 10 million")
    options.add_argument("--workers", type=int, default=2, help="default: 2")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with (work / "text.jsonl").open("w") as lines:
            for number in range(arguments.records):
                lines.write(f'{{"text": "record {number}"}}\n')
        train_tokenizer([f"record {n}" for n in range(500)], work / "t.model", 280)
        peaks, seconds = run(work, arguments.workers)
        samples = read_manifest(work / "set").samples
        index_bytes = (work / "set.idx").stat().st_size
    how = f"{arguments.records:,} records, {arguments.workers} workers, sampled every {EVERY_S} s"
    claims = [
        Claim("peak resident memory, all processes", max(peaks) / GIB, "GiB", 1, "lower", how),
        Claim(
            "growth from the first to the second half of the run",
            (max(peaks[len(peaks) // 2 :]) - max(peaks[: len(peaks) // 2])) / GIB,
            "GiB",
            better="lower",
            how=how,
        ),
        Claim("samples", samples, "", arguments.records, how=how),
        Claim("index", index_bytes / GIB, "GiB", how=how),
        Claim("records a second", arguments.records / seconds, "/s", how=how),
    ]
    return report(claims, arguments)


def run(work: Path, workers: int) -> tuple[list[int], float]:
    """(resident bytes of all processes of the tool, again and again; seconds)."""
    started = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "text"),
            *("--input", str(work / "text.jsonl"), "--output", str(work / "set")),
            *("--tokenizer", str(work / "t.model"), "--workers", str(workers)),
        ],
        stdout=subprocess.DEVNULL,
    )
    peaks = [0]
    while process.poll() is None:
        peaks.append(resident(process.pid))
        time.sleep(EVERY_S)
    if process.returncode:
        raise SetupError(f"the tool failed with exit code {process.returncode}.")
    return peaks, time.monotonic() - started


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it; pages that they share count for each."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


if __name__ == "__main__":
    run_cli(main)

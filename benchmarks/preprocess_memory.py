"""Memory of preprocessing: an index of 10 million records, and the whole tool on a million.

    python benchmarks/preprocess_memory.py [--json FILE]

Every record is a short text of its own, so that the index is as large as it can be for its data.
The first part appends serialised records to the writer, the second reads JSON Lines with two
workers.
"""

import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from claims import Claim, parser, report

from vila_mc.data.indexed.dataset_manifest import read_manifest
from vila_mc.data.indexed.serialisation import Serialised
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import SetupError, run_cli

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
BLOCK = 10_000
"""Records a worker serialises at a time."""
EVERY_S = 0.1


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--records", type=int, default=10_000_000, help="default: 10 million")
    options.add_argument("--tool-records", type=int, default=1_000_000, help="default: a million")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        train_tokenizer([f"record {n}" for n in range(500)], work / "t.model", 280)
        writer = get_context("spawn").Process(target=write_index, args=(work, arguments.records))
        writer.start()
        index = watch(psutil.Process(writer.pid))
        if read_manifest(work / "index").samples != arguments.records:
            raise SetupError("the index is not whole.")
        index_bytes = (work / "index.idx").stat().st_size
        write_lines(work / "text.jsonl", arguments.tool_records)
        tool = watch(start_tool(work))
        kept = read_manifest(work / "set").samples
    half = len(tool) // 2
    how = f"resident memory, sampled every {EVERY_S} s"
    claims = [
        Claim(f"index of {arguments.records:,} records", max(index) / GIB, "GiB", 1, "lower", how),
        Claim("its size on the disk", index_bytes / GIB, "GiB"),
        Claim(
            f"the tool on {kept:,} records, all its processes",
            max(tool) / GIB,
            "GiB",
            1,
            "lower",
            f"{how}; two workers; pages that processes share count for each",
        ),
        Claim(
            "growth from its first half to its second",
            (max(tool[half:]) - max(tool[:half])) / GIB,
            "GiB",
            better="lower",
            how=how,
        ),
    ]
    return report(claims, arguments)


def write_index(work: Path, records: int) -> None:
    """One token a record, serialised as workers do it."""
    some = Serialised(
        data=bytes(2 * BLOCK),
        lengths=np.ones(BLOCK, np.int32),
        modes=np.empty(0, np.int8),
        pieces=np.ones(BLOCK, np.int64),
        sides=np.empty((0, 2), np.int32),
        tokens=BLOCK,
    )
    with IndexedWriter(work / "index", "text", Tokenizer(work / "t.model")) as writer:
        for _ in range(records // BLOCK):
            writer.append(some)
        writer.finish({})


def write_lines(file: Path, records: int) -> None:
    """The raw corpus."""
    with file.open("w") as lines:
        for number in range(records):
            lines.write(f'{{"text": "record {number}"}}\n')


def start_tool(work: Path) -> psutil.Popen:
    """tools/preprocess_data.py on the raw corpus."""
    return psutil.Popen(
        [
            *(sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "text"),
            *("--input", str(work / "text.jsonl"), "--output", str(work / "set")),
            *("--tokenizer", str(work / "t.model"), "--workers", "2"),
        ],
        stdout=subprocess.DEVNULL,
    )


def watch(process: psutil.Process) -> list[int]:
    """Resident bytes of a process and all below it, again and again until it ends."""
    seen = [0]
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        seen.append(resident(process.pid))
        time.sleep(EVERY_S)
    return seen


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

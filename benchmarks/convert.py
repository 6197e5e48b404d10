"""Conversion of a model of 10 GB, against `cp` of the same bytes: time and memory.

A synthetic Llama and CLIP in bfloat16 are imported to a training checkpoint, which is exported
again, each by tools/convert_checkpoint.py in a process of its own; its start is part of the time.
Every conversion follows a `cp -r` of its input, and each time ends when the disk has the bytes.
Needs room for four times the model; everything is deleted at the end.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from claims import Claim, parser, report

from vila_mc.config.model import LanguageConfig, VisionConfig
from vila_mc.convert.families.registry import language_json, vision_json
from vila_mc.convert.names import language_table, unread_shapes, vision_table
from vila_mc.convert.weights import write_weights
from vila_mc.data.tokenizers.tokenizer import train_tokenizer

CHECKOUT = Path(__file__).resolve().parents[1]
SHARD = 10**9
TIME_TARGET = 2.0
MEMORY_TARGET_GIB = 1.5 * SHARD / 2**30 + 1.0
_SAMPLE_S = 0.02
_BLOCK = 2**27


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument(
        "--layers", type=int, default=24, help="of the Llama; 24: 10.8 GB"
    )
    arguments_parser.add_argument("--scratch", type=Path, help="where to write (default: /tmp)")
    arguments = arguments_parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=arguments.scratch))
    try:
        claims = measure(folder, arguments.layers)
    finally:
        shutil.rmtree(folder)
    return report(claims, arguments)


def measure(folder: Path, layers: int) -> list[Claim]:
    """Make the model, convert it there and back."""
    source = folder / "source"
    make_model(source, layers)
    size = num_bytes(source)
    claims = [Claim("the model in bfloat16", size / 1e9, "GB", target=10.0)]
    tool = [sys.executable, str(CHECKOUT / "tools/convert_checkpoint.py")]
    imported, exported = folder / "imported", folder / "exported"
    outputs = {"import": imported, "export": exported}
    steps = {
        "import": (
            source,
            [
                *("import", "--llm", source / "llm", "--vision", source / "vision", "--no-verify"),
                *("--connector", "mlp_downsample", "--output", imported),
            ],
        ),
        "export": (
            imported,
            [
                *("export", "--checkpoint", imported, "--output", exported),
                *("--shard-size", "1GB", "--no-verify"),
            ],
        ),
    }
    for name, (given, options) in steps.items():
        copied = copy_seconds(given, folder / "copy")
        forget(given)
        seconds, peak = run_and_watch([*tool, *map(str, options)], outputs[name])
        how = f"{seconds:.0f} s against {copied:.0f} s of cp, both until the disk has the bytes"
        claims += [
            Claim(f"{name}: time / cp", seconds / copied, "x", TIME_TARGET, "lower", how),
            Claim(f"{name}: speed", size / 1e9 / seconds, "GB/s"),
            Claim(
                f"{name}: peak memory beyond page cache",
                peak,
                "GiB",
                MEMORY_TARGET_GIB,
                "lower",
                "greatest RssAnon + RssShmem of the process, read every 20 ms",
            ),
        ]
    assert num_bytes(exported) > 0.95 * size, "the export is not whole"
    return claims


def make_model(folder: Path, layers: int) -> None:
    """A Llama as wide as 7B and CLIP ViT-L/14-336, weights from one block of random numbers."""
    language = LanguageConfig(layers=layers)
    vision = VisionConfig()
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(1)).bfloat16() * 0.02

    def values(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, shape) in enumerate(shapes.items()):
            count = torch.Size(shape).numel()
            start = number * 4099 % (_BLOCK // 2)
            repeats = -(-(start + count) // _BLOCK)
            numbers = block if repeats == 1 else block.repeat(repeats)
            yield name, numbers[start : start + count].view(shape)

    tower = vision_table(vision).their_shapes() | unread_shapes(vision)
    for part, shapes, config in (
        ("llm", language_table(language).their_shapes(), language_json(language)),
        ("vision", tower, vision_json(vision, vision.layers)),
    ):
        (folder / part).mkdir(parents=True)
        write_weights(values(shapes), shapes, folder / part, torch.bfloat16, 5 * SHARD)
        (folder / part / "config.json").write_text(json.dumps(config))
    words = (f"word{number} is followed by word{number * 7 % 997}" for number in range(997))
    train_tokenizer(words, folder / "llm" / "tokenizer.model", 300)


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds that `cp -r` takes, from a disk that has to be read to a disk that has the bytes."""
    forget(source)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    flush(target)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def run_and_watch(command: Sequence[str], output: Path) -> tuple[float, float]:
    """Seconds of a command until the disk has its output, and its peak memory in GiB."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_bytes(process.pid))
        time.sleep(_SAMPLE_S)
    flush(output)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, peak / 2**30


def memory_bytes(pid: int) -> int:
    """Memory of a process that is not page cache."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def forget(folder: Path) -> None:
    """Ask the kernel to drop the files from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path) -> None:
    """Wait until the disk has every file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def num_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())

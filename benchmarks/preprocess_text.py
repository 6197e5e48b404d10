"""Text preprocessing against Megatron-LM's own tools: same text, same tokenizer, whole process.

    python benchmarks/preprocess_text.py --megatron-lm DIR [--model MODEL] [--json FILE]

DIR is a checkout of https://github.com/NVIDIA/Megatron-LM. The text is what documentation the
machine holds. MODEL is a SentencePiece model that both sides use; without one, one of 32,000 tokens
is trained on a part of the text. What preprocess_data_fast.py needs (gigatoken, awkward) is
installed into a temporary folder; where that fails, that line is left out.
"""

import contextlib
import ctypes
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from claims import Claim, median_ratio, parser, report

from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import ConfigError, run_cli

ROOT = Path(__file__).parents[1]
TEXT_FOLDERS = ("/usr/share/doc", "/usr/share/man", "/usr/share/perl", os.path.dirname(os.__file__))
TEXT_ENDINGS = (".gz", ".txt", ".rst", ".md", ".pod", ".py", "copyright")
DOCUMENT = 4000
"""Characters of a document."""
TRAINING_MB = 8
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """Of one run of a tool, from start to exit."""

    wall: float
    cpu: float


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--megatron-lm", type=Path, metavar="DIR", help="checkout of Megatron-LM")
    options.add_argument("--model", type=Path, help="SentencePiece model (default: train one)")
    options.add_argument("--megabytes", type=int, default=128, help="of text (default: 128)")
    options.add_argument("--rounds", type=int, default=3, help="default: 3")
    options.add_argument("--workers", type=int, default=2, help="of each tool (default: 2)")
    arguments = options.parse_args()
    tool = "tools/preprocess_data.py"
    if arguments.megatron_lm is None or not (arguments.megatron_lm / tool).is_file():
        raise ConfigError(
            f"--megatron-lm {arguments.megatron_lm} is no checkout of Megatron-LM with {tool}. "
            "Clone https://github.com/NVIDIA/Megatron-LM and give its folder."
        )
    # Workers whose parents are gone become our children, so that their CPU time counts.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = write_corpus(work / "text.jsonl", arguments.megabytes)
        model = arguments.model or train(work)
        bench = Bench(work, arguments.megatron_lm.absolute(), model.absolute(), arguments.workers)
        return report(bench.claims(size, arguments.rounds), arguments)


class Bench:
    """The tools, on one corpus."""

    def __init__(self, work: Path, megatron: Path, model: Path, workers: int) -> None:
        self.work = work
        self.megatron = megatron
        self.model = model
        self.workers = workers
        self.input = work / "text.jsonl"

    def claims(self, size: float, rounds: int) -> list[Claim]:
        """Run everything in turn, ``rounds`` times; ``size`` is in MB."""
        tools: dict[str, Callable[[], Cost]] = {"ours": self.ours, "theirs": self.theirs}
        if self.prepare_fast():
            tools["fast"] = self.fast
        costs: dict[str, list[Cost]] = {name: [] for name in tools}
        self.warm_up(tools.values())
        for _ in range(rounds):
            for name, run in tools.items():
                cost = run()
                costs[name].append(cost)
                print(f"{name:8} {cost.wall:7.2f} s wall, {cost.cpu:7.2f} s of CPU", flush=True)
        how = (
            f"{size:.0f} MB of documentation, {Tokenizer(self.model).vocab_size:,} tokens, "
            f"{self.workers} workers, whole processes in turn, median of {rounds} ratios"
        )
        wall = {name: [cost.wall for cost in runs] for name, runs in costs.items()}
        cpu = {name: [cost.cpu for cost in runs] for name, runs in costs.items()}
        plain, quick = "Megatron-LM's preprocess_data.py", "preprocess_data_fast.py"
        made = [
            Claim(f"faster than {plain}", median_ratio(wall["theirs"], wall["ours"]), "x", 8),
            Claim(f"CPU time of {plain} over ours", median_ratio(cpu["theirs"], cpu["ours"]), "x"),
            Claim("our rate, whole process", size / float(np.median(wall["ours"])), "MB/s"),
            Claim("documents with the same ids, BOS aside", self.share_of_same_ids(), "", 1),
        ]
        if "fast" in tools:
            made += [
                Claim(f"faster than {quick}", median_ratio(wall["fast"], wall["ours"]), "x", 1),
                Claim(
                    f"CPU time of {quick} over ours", median_ratio(cpu["fast"], cpu["ours"]), "x"
                ),
            ]
        return [replace(claim, how=how) for claim in made]

    def warm_up(self, tools: Iterable[Callable[[], Cost]]) -> None:
        """Bring the tools into memory, on a few documents."""
        whole, self.input = self.input, self.work / "few.jsonl"
        with whole.open(encoding="utf-8") as lines:
            self.input.write_text("".join(islice(lines, 50)), encoding="utf-8")
        for run in tools:
            run()
        self.input = whole

    def ours(self) -> Cost:
        for file in self.work.glob("ours*"):
            file.unlink()
        arguments = ["text", "--input", self.input, "--output", self.work / "ours"]
        options = ["--tokenizer", self.model, "--workers", self.workers]
        return run(ROOT / "tools" / "preprocess_data.py", *arguments, *options, path=[ROOT])

    def theirs(self) -> Cost:
        return run(
            self.megatron / "tools" / "preprocess_data.py",
            *("--input", self.input, "--output-prefix", self.work / "theirs", "--append-eod"),
            *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", self.model),
            *("--workers", self.workers, "--log-interval", 10**9),
            path=[self.megatron],
        )

    def fast(self) -> Cost:
        return run(
            self.megatron / "tools" / "preprocess_data_fast.py",
            *("--input", self.input, "--output-prefix", self.work / "fast", "--append-eod"),
            *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", self.work / "hf"),
            "--use-gigatoken",
            path=[self.megatron, self.work / "peers"],
        )

    def prepare_fast(self) -> bool:
        """Install what it needs and convert the tokenizer; whether that worked."""
        from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer

        if not (self.megatron / "tools" / "preprocess_data_fast.py").is_file():
            return False
        install = (sys.executable, "-m", "pip", "install", "-q", "--target", self.work / "peers")
        done = subprocess.run(
            [*install, "gigatoken", "awkward"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"preprocess_data_fast.py is left out: {done.stderr.strip().splitlines()[-1]}")
            return False
        (self.work / "hf").mkdir()
        vocab_size = Tokenizer(self.model).vocab_size
        write_tokenizer(load_convertible(self.model, vocab_size), self.work / "hf", DOCUMENT)
        return True

    def share_of_same_ids(self) -> float:
        """Megatron-LM's tool writes no BOS; apart from it, ids must be the same."""
        reader = IndexedReader(self.work / "ours")
        dtype = np.dtype("<u2") if reader.manifest.vocab_size < 65_500 else np.dtype("<i4")
        theirs = np.fromfile(self.work / "theirs_text_document.bin", dtype)
        same = start = 0
        for index in range(len(reader)):
            ids = reader.sample(index)[0].ids[1:]  # type: ignore[union-attr]
            same += np.array_equal(ids, theirs[start : start + len(ids)])
            start += len(ids)
        return same / len(reader)


def run(script: Path, *arguments: object, path: list[Path]) -> Cost:
    """One process from start to exit."""
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, path)), "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - started
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # processes that its tool left to us, see main
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ConfigError(f"{script} failed: {done.stderr.strip().splitlines()[-1]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu)


def write_corpus(file: Path, megabytes: int) -> float:
    """JSON Lines of documents; no file of the machine is used twice. Returns MB of text."""
    size = 0
    with file.open("w", encoding="utf-8") as lines:
        for text in texts():
            for start in range(0, len(text), DOCUMENT):
                part = text[start : start + DOCUMENT]
                if part.strip():
                    size += len(part.encode())
                    lines.write(json.dumps({"text": part}) + "\n")
            if size > megabytes * 1e6:
                break
    return size / 1e6


def texts() -> Iterator[str]:
    """Documentation on this machine."""
    seen = set()
    for folder in TEXT_FOLDERS:
        for file in sorted(Path(folder).rglob("*")):
            if not file.name.endswith(TEXT_ENDINGS) or not file.is_file() or file.is_symlink():
                continue
            try:
                data = file.read_bytes()
                text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
            except (OSError, EOFError, ValueError):
                continue
            if hash(text) not in seen:
                seen.add(hash(text))
                yield text


def train(work: Path) -> Path:
    """A tokenizer of 32,000 tokens on the first part of the corpus."""
    sentences, size = [], 0
    with (work / "text.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            sentences.append(json.loads(line)["text"])
            size += len(line)
            if size > TRAINING_MB * 1e6:
                break
    train_tokenizer(sentences, work / "tokenizer.model", 32_000)
    return work / "tokenizer.model"


if __name__ == "__main__":
    run_cli(main)

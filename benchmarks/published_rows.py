"""Rows of published measurements: what they are of, and what each calls its value.

``benchmarks/published/performance.csv`` has a measurement a line with its source.
"""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vila_mc.errors import ConfigError
from vila_mc.planner.constants import Constants
from vila_mc.planner.job import Job
from vila_mc.planner.memory import rank_memory
from vila_mc.planner.step import step_time
from vila_mc.topology.hardware import GPUS, Gpu

PUBLISHED = Path(__file__).parent / "published/performance.csv"
Row = Mapping[str, str]
COLUMNS = (
    *("source", "hardware", "precision", "model", "params_b", "layers", "hidden", "heads"),
    *("kv_heads", "ffn", "vocab", "seq", "gbs", "mbs", "gpus", "tp", "pp", "vpp", "cp", "dp"),
    *("recompute", "metric", "value", "notes"),
)
_MOST = {
    **dict.fromkeys(("gpus", "tp", "pp", "vpp", "cp"), 16_384),
    **dict.fromkeys(("layers", "heads", "kv_heads"), 4096),
    **dict.fromkeys(("hidden", "ffn", "vocab", "gbs", "mbs"), 10_000_000),
}
"""The greatest whole number of a column: far beyond what anybody has published."""
_MOST_BYTES = 64 << 20
_LONGEST = 100_000_000
"""Positions of a row."""


class NotModelledError(Exception):
    """A row that the planner has nothing to say about, with the reason."""


class BrokenRowError(NotModelledError):
    """A row that is none: something is missing, or is not what its column holds."""


@dataclass(frozen=True, slots=True)
class Published:
    """A row that can be predicted."""

    row: Row
    job: Job
    gpu: Gpu
    kind: str
    """dense, vision or long."""
    tuned: tuple[str, ...] = ()
    """What the row does not print, and its authors tuned: the best is taken."""

    def run(self) -> tuple[Job, str]:
        """What rows of one run have in common."""
        return self.job, self.gpu.name


def rows(file: Path = PUBLISHED) -> list[Row]:
    """All rows of a file.

    Raises:
        ConfigError: it is no CSV file with a heading.
        OSError: it cannot be read.
    """
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is no file. Give a CSV file.")
    if file.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{file} is larger than {_MOST_BYTES >> 20} MiB. Give fewer rows.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            found: list[Row] = list(csv.DictReader(opened))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no CSV file in UTF-8: {error}.") from None
    if not found:
        raise ConfigError(f"{file} has no rows. Give a heading ({', '.join(COLUMNS)}) and a row.")
    return found


def require_readable(row: Row) -> None:
    """Refuse a row without a column, or with a number that is none. Raises BrokenRowError."""
    if missing := [name for name in COLUMNS if name not in row]:
        raise BrokenRowError(f"the file has no column {', '.join(missing)}")
    if None in row:
        raise BrokenRowError("it has more values than the heading")
    if missing := [name for name in COLUMNS if row[name] is None]:
        raise BrokenRowError(f"it ends before {missing[0]}")
    try:
        is_number = 0 < float(row["value"]) < math.inf
    except ValueError:
        is_number = False
    if not is_number:
        raise BrokenRowError(f"value is {row['value'][:40]!r}, not a number greater than 0")
    for name, most in _MOST.items():
        given = row[name]
        is_experts = name == "ffn" and "x" in given
        if given and not is_experts and not _is_whole(given, most):
            raise BrokenRowError(f"{name} is {given[:40]!r}, not a number from 1 to {most:,}")
    if len(row["seq"]) > 40 or length_of(row) > _LONGEST:
        raise BrokenRowError(f"seq is {row['seq'][:40]!r}, more than {_LONGEST:,} positions")


def require_consistent(row: Row) -> None:
    """Refuse a row whose numbers cannot be together. Raises BrokenRowError."""
    sizes = ("hidden", "heads", "kv_heads", "ffn")
    if missing := [name for name in sizes if row["layers"] and not row[name]]:
        raise BrokenRowError(f"it has layers, but no {', '.join(missing)}")
    layers, pipeline = int(row["layers"] or 80), int(row["pp"] or 1)
    virtual = int(row["vpp"] or 1)
    if int(row["heads"] or 1) > int(row["hidden"] or 8192):
        raise BrokenRowError(f"{row['heads']} heads cannot share a width of {row['hidden']}")
    if pipeline * virtual > layers:
        raise BrokenRowError(f"{layers} layers cannot be {pipeline} x {virtual} stages")
    ranks = pipeline * int(row["tp"] or 1) * int(row["cp"] or 1)
    if row["gpus"] and ranks > int(row["gpus"]):
        raise BrokenRowError(f"{row['gpus']} GPUs cannot be tp x pp x cp = {ranks:,} ranks")


def length_of(row: Row) -> int:
    """Positions of a row, as printed; 0 if they are not."""
    return int(re.sub(r"\D.*", "", row["seq"].lstrip("~"), flags=re.DOTALL) or 0)


def _is_whole(text: str, most: int) -> bool:
    is_short = len(text) <= len(str(most))
    return is_short and text.isascii() and text.isdecimal() and 1 <= int(text) <= most


def kind_of_row(row: Row) -> str:
    """dense, vision, long, or what the planner does not claim to know."""
    experts = r"A\d+B|-a\d+b|_a3B|MoE|GPT OSS|Nemotron.3|DeepSeek|Kimi|omni"
    if re.search(experts, row["model"]) or "x" in row["ffn"]:
        return "experts"
    if gpu_of(row["hardware"]) not in GPUS:
        return "other hardware"
    if re.search(r"VL|LLaVA|VLM|VILA", row["model"] + row["notes"]):
        return "vision"
    return "long" if float(re.sub(r"\D.*", "", row["seq"]) or 0) >= 16_384 else "dense"


def require_modelled(row: Row) -> None:
    """Refuse a row that the planner has nothing to say about. Raises NotModelledError."""
    model, metric = row["model"], row["metric"]
    if kind_of_row(row) == "experts":
        raise NotModelledError("mixture of experts or state-space layers")
    if metric not in ("tokens_s_gpu", "tflops_gpu", "mfu_pct", "step_s", "mem_gb"):
        raise NotModelledError(f"{metric} is of a whole recipe, or a ratio of two unknown times")
    if gpu_of(row["hardware"]) not in GPUS:
        raise NotModelledError(f"hardware is {row['hardware']}")
    if "Q-LoRA" in model:
        raise NotModelledError("weights of 4 bits")
    if not row["layers"] and "72B dense" not in model:
        raise NotModelledError("the model's sizes are not published")
    if "unpacked captions" in row["notes"] or "demo data" in row["notes"]:
        raise NotModelledError("padded rows of pictures whose sizes are not published")
    if metric == "mem_gb" and not row["gpus"]:
        raise NotModelledError("memory of shared weights, and the number of GPUs is not published")
    if "one layer" in model:
        raise NotModelledError("one layer, not a step")
    if "range" in row["notes"]:
        raise NotModelledError("a range, not a measurement")


def gpu_of(hardware: str) -> str:
    """The name of a GPU in ``topology.hardware``; nothing where it is not there."""
    known = (
        (r"A100-40GB", "a100-40g"),
        (r"A800|A100/A800", "a800-80g"),
        (r"A100", "a100-80g"),
        (r"H100", "h100-80g"),
        (r"GB300", "gb300"),
        (r"GB200", "gb200"),
        (r"B200", "b200"),
    )
    return next((name for pattern, name in known if re.search(pattern, hardware)), "")


def seconds_of(one: Published, constants: Constants) -> float:
    """Seconds of a step, as foretold."""
    return min(step_time(job, one.gpu, constants).total for job in variants(one))


def value_of(one: Published, seconds: float, memory: float) -> float:
    """What the planner says in place of the row's value.

    Args:
        one: the row.
        seconds: of a step, as foretold.
        memory: bytes at the peak, as foretold.
    """
    row, job = one.row, one.job
    metric = row["metric"]
    if metric == "mem_gb":
        return memory / (1e9 if "1e9" in row["notes"] else 2**30)
    if metric == "step_s":
        return seconds
    tokens = job.rows * job.length / (seconds * job.share.ranks())
    if metric == "tokens_s_gpu":
        return tokens * real_share(row)
    per_token = counted_flops(row, job)
    if metric == "tflops_gpu":
        return tokens * per_token / 1e12
    return 100 * tokens * per_token / one.gpu.peak["bf16"]


def real_share(row: Row) -> float:
    """Tokens that are counted of those in rows: packs are never quite full."""
    if "real (non-pad) tokens" not in row["notes"]:
        return 1.0
    return REAL_TOKENS.get((row["model"], row["seq"]), 1.0)


REAL_TOKENS = {
    ("Qwen2.5-VL-7B", "8096"): 0.475,
    ("LLaVA-OV-1.5-4B", "~4096 packed (max 32768)"): 0.936,
}
"""Share of the rows' positions that are counted as tokens: tokens/s/GPU x step time x GPUs of the
same run, over its rows."""


def counted_flops(row: Row, job: Job) -> float:
    """FLOPs per token as the row's authors count them."""
    decoder = job.decoder
    matrices = decoder.layers * decoder.layer_weights() + decoder.table_weights()
    if "LoRA" in row["notes"]:  # frozen weights have no gradient; attention is not counted
        return 4 * matrices
    attention: float = 12 * decoder.layers * job.length * decoder.query_width()
    if "Megatron-Bridge" in row["source"]:  # which leaves out what is masked
        attention /= 2
    if "INCLUDES recompute" in row["notes"]:
        layers = decoder.layers * decoder.layer_weights()
        return 8 * layers + 4 / 3 * attention + 6 * decoder.table_weights()
    return 6 * matrices + attention


def variants(one: Published) -> list[Job]:
    """The job, once for every choice that its authors tuned and did not print."""
    jobs = [one.job]
    if "virtual" in one.tuned:
        share = one.job.share
        most = one.job.decoder.layers // share.pipeline
        jobs = [
            replace(job, share=replace(share, virtual=virtual))
            for job in jobs
            for virtual in range(1, most + 1)
            if most % virtual == 0
        ]
    if "micro_batch" in one.tuned:
        per_rank = one.job.rows // one.job.share.data
        jobs = [
            replace(job, micro_batch=size)
            for job in jobs
            for size in (1, 2, 4, 8, 16)
            if per_rank % size == 0
            and (job.share.virtual == 1 or per_rank // size % job.share.pipeline == 0)
        ]
    return jobs or [one.job]


def memory_of(one: Published, constants: Constants) -> float:
    """Bytes at the peak, as the row counts them: of the worst rank, or the mean of all."""
    ranks = [rank_memory(one.job, rank, constants) for rank in range(one.job.share.pipeline)]
    totals = [rank.total() for rank in ranks]
    return sum(totals) / len(totals) if "LoongForge" in one.row["source"] else max(totals)

"""Rows of published measurements as jobs of the planner, and what each row calls its value.

``benchmarks/published/performance.csv`` has a measurement a line with its source. What a source
does not print but says elsewhere (its engine, its vision tower, how it counts FLOPs) stands here.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vila_mc.planner.constants import Constants
from vila_mc.planner.job import Decoder, Engine, Job, Learns, Recompute, Share, Tower
from vila_mc.planner.memory import rank_memory
from vila_mc.planner.step import step_time
from vila_mc.topology.hardware import GPUS, Arithmetic, Gpu

PUBLISHED = Path(__file__).parent / "published/performance.csv"
Row = Mapping[str, str]
FLASH_72B = Decoder(  # Qwen2-72B's sizes, which fit the rows' FLOPs per token
    layers=80, width=8192, heads=64, kv_heads=8, head_width=128, ffn=29568, vocab=152_064
)


UNPRINTED = 8
"""Microbatches of each pipeline stage where a global batch is not printed: few bubbles."""


class NotModelledError(Exception):
    """A row that the planner has nothing to say about, with the reason."""


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
    """All rows of a file."""
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def published(row: Row) -> Published:
    """A row as a job. Raises NotModelledError."""
    _require_modelled(row)
    gpu = GPUS[_gpu(row["hardware"])]
    share = _share(row)
    decoder = _decoder(row)
    engine = _engine(row)
    arithmetic, is_block = _arithmetic(row["precision"])
    tower, images, length, attended = _vision(row)
    tuned = tuple(
        name
        for name, is_tuned in (
            ("micro_batch", bool(row["gbs"]) and not row["mbs"]),
            ("virtual", "model_table.png" in row["source"] and share.pipeline > 1),
        )
        if is_tuned
    )
    recompute, recomputed = _recompute(row, decoder)
    is_lora = "LoRA" in row["notes"] or "LoRA" in row["model"]
    job = Job(
        decoder=decoder,
        tower=tower,
        length=length,
        attended=attended or length,
        rows=int(row["gbs"] or UNPRINTED * share.data * share.pipeline),
        micro_batch=int(row["mbs"] or 1),
        images=images,
        share=share,
        recompute=recompute,
        recomputed=recomputed,
        learns=_learns(row, is_lora, tower),
        arithmetic=arithmetic,
        block_scaled=is_block,
        engine=engine,
    )
    return Published(row, job, gpu, kind_of_row(row), tuned)


def kind_of_row(row: Row) -> str:
    """dense, vision, long, or what the planner does not claim to know."""
    experts = r"A\d+B|-a\d+b|_a3B|MoE|GPT OSS|Nemotron.3|DeepSeek|Kimi|omni"
    if re.search(experts, row["model"]) or "x" in row["ffn"]:
        return "experts"
    if _gpu(row["hardware"]) not in GPUS:
        return "other hardware"
    if re.search(r"VL|LLaVA|VLM|VILA", row["model"] + row["notes"]):
        return "vision"
    return "long" if float(re.sub(r"\D.*", "", row["seq"]) or 0) >= 16_384 else "dense"


def _require_modelled(row: Row) -> None:
    model, metric = row["model"], row["metric"]
    if kind_of_row(row) == "experts":
        raise NotModelledError("mixture of experts or state-space layers")
    if metric not in ("tokens_s_gpu", "tflops_gpu", "mfu_pct", "step_s", "mem_gb"):
        raise NotModelledError(f"{metric} is of a whole recipe, or a ratio of two unknown times")
    if _gpu(row["hardware"]) not in GPUS:
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


def _gpu(hardware: str) -> str:
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


def _share(row: Row) -> Share:
    tensor, pipeline = int(row["tp"] or 1), int(row["pp"] or 1)
    context = int(row["cp"] or 1)
    ranks = int(row["gpus"] or 64 * context)  # unprinted: of 64 replicas
    data = ranks // (tensor * pipeline * context)
    return Share(
        tensor=tensor,
        pipeline=pipeline,
        virtual=int(row["vpp"] or 1),
        context=context,
        data=max(1, data),
    )


def _decoder(row: Row) -> Decoder:
    if not row["layers"]:
        return FLASH_72B
    width, heads = int(row["hidden"]), int(row["heads"])
    is_gpt = re.match(r"GPT|Nemotron|LLaVA-mini", row["model"]) is not None
    head = 128 if row["model"].startswith(("Qwen3", "LLaVA-OV", "InternVL3.5")) else width // heads
    layers = 1 if "one layer" in row["model"] else int(row["layers"])
    return Decoder(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=int(row["kv_heads"]),
        head_width=head,
        ffn=int(row["ffn"]),
        vocab=1 if "one layer" in row["model"] else int(row["vocab"] or 51_200),
        gated=not is_gpt,
        tied=is_gpt and "7B-GQA" not in row["model"],
    )


def _arithmetic(precision: str) -> tuple[Arithmetic, bool]:
    name = precision.lower()
    if "fp4" in name:
        return "fp4", True
    if "fp8" in name:
        return "fp8", "mx" in name
    return "bf16", False


def _engine(row: Row) -> Engine:
    """What each source runs, from its text or code."""
    source = row["source"]
    if "cases_april2021" in source or "tables.tex" in source:
        return Engine(attention="unfused", sharding="none", sequence=False, overlap_gradients=False)
    if "2205.05198" in source:
        is_split = "SP" in row["recompute"] or row["notes"].startswith("sequence parallel")
        return Engine(
            attention="unfused", sharding="none", sequence=is_split, overlap_gradients=False
        )
    if "nanotron" in source:  # reduces a tensor at a time with ZeRO-1, in buckets without
        is_sharded = "ZeRO-1" in row["notes"]
        return Engine(
            name="nanotron",
            sharding="optimizer" if is_sharded else "none",
            calls=9 if is_sharded else 0.2,
            kept_gradients=2,
            overlap_gradients=False,
        )
    if "VeOmni" in source or "Automodel" in source:
        is_baseline = "TorchTitan" in row["model"] or "Automodel" in source
        return Engine(
            name="fsdp" if is_baseline else "veomni",
            sharding="weights",
            ulysses="VeOmni" in source,
            overlap_gradients=False,
            gradient_bytes=2,
            calls=1,
        )
    if row["hidden"] == "624":  # heads of 52, which no flash attention takes
        return Engine(name="tests", attention="unfused")
    if "functional_tests" in source:
        return Engine(name="tests", sequence="no SP" not in row["notes"])
    if "LoongForge" in source:
        return Engine(name="loongforge")
    if "Qwen-VL" in source:
        return Engine(name="hugging_face", sharding="none", sequence=False, gradient_bytes=2)
    if "nanoVLM" in source:
        return Engine(name="hugging_face", sharding="none", sequence=False)
    return Engine(overlap_tensor=True)


def _recompute(row: Row, decoder: Decoder) -> tuple[Recompute, float]:
    given = row["recompute"]
    if "72B dense" in row["model"]:
        return "full", 1.0
    if "selective" in given:
        return "attention", 1.0
    if given.startswith("full/block"):
        return "full", min(1.0, int(given.rsplit("/", 1)[1]) * int(row["pp"] or 1) / decoder.layers)
    if given.startswith("full"):
        return "full", 1.0
    return "none", 1.0


def _learns(row: Row, is_lora: bool, tower: Tower | None) -> Learns:
    notes = row["notes"]
    if "only the projector learns" in notes or row["model"].startswith("MIMO"):
        return Learns(language=False, tables=False)
    if is_lora:
        return Learns(
            language=False,
            connector=False,
            adapters=64 if "Qwen-VL" in row["model"] else 16,
            tables="output layer trained" in notes,
        )
    return Learns(vision=tower is not None)


INTERN_VIT = Tower(layers=24, width=1024, heads=16, ffn=4096, positions=1025, visual_tokens=256)
QWEN_VIT = Tower(  # one "image" is a window of 64 patches, which most layers attend within
    layers=32, width=1280, heads=16, ffn=3420, positions=64, visual_tokens=16, gated=True
)
RICE_VIT = Tower(layers=24, width=1024, heads=16, ffn=4096, positions=1024, visual_tokens=256)
CLIP_L = Tower(layers=24, width=1024, heads=16, ffn=4096, positions=577, visual_tokens=576)


def _vision(row: Row) -> tuple[Tower | None, float, int, float]:
    """Tower, images of a row, the row's length, and the positions of its samples."""
    model, text = row["model"], row["seq"]
    length = int(re.sub(r"\D.*", "", text.lstrip("~")) or 0)
    if model.startswith("InternVL"):
        width = int(row["hidden"])
        tower = replace(INTERN_VIT, connector=4096 * width + width * width)
        return tower, 0.8 * length / 256, length, 2048
    if model.startswith("LLaVA-OV"):
        width = int(row["hidden"])
        tower = replace(RICE_VIT, connector=4096 * 4096 + 4096 * width)
        return tower, 0.8 * length / 256, length, 1024
    if model.startswith("Qwen2.5-VL"):
        width = int(row["hidden"])
        tower = replace(QWEN_VIT, connector=5120 * 5120 + 5120 * width)
        return tower, 0.8 * length / 16, length, 1024
    if model.startswith("MIMO"):
        tower = replace(CLIP_L, connector=1024 * 4096 + 4096**2)
        return tower, 1, 2048, 0  # total-seq-length of its configuration
    if "CLIP" in model and row["hidden"] == "624":
        tower = replace(CLIP_L, connector=1024 * 2048 + 2048 * 624)
        return tower, 1, length + 576, 0
    if "CLIP" in model:
        if packed := re.search(r"dataloader-seq (\d+)", row["notes"]):
            length = int(packed[1])
        elif "LTS software" in row["notes"]:  # the same test
            length = 1232
        tower = replace(CLIP_L, connector=1024 * 4096 + int(row["hidden"]) ** 2)
        return tower, 1, length, 0
    if model.startswith("Qwen-VL"):
        tower = Tower(
            layers=48,
            width=1664,
            heads=16,
            ffn=8192,
            positions=1024,
            visual_tokens=256,
            connector=4096 * 4096 * 2,
        )
        return tower, 1, length, 0
    if model.startswith("nanoVLM"):
        tower = Tower(
            layers=12,
            width=768,
            heads=12,
            ffn=3072,
            positions=196,
            visual_tokens=49,
            connector=768 * 4 * 576,
        )
        return tower, 1, length + 49, 0
    if "SQuAD" in row["notes"]:
        return None, 0, length, 256
    return None, 0, length, 0


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

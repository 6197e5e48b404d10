"""A row of published measurements as a job of the planner.

What a source does not print but says elsewhere, or what is assumed of it, stands here: its engine,
its vision tower, what learns.
"""

import re
from dataclasses import replace

from published_rows import (
    BrokenRowError,
    Published,
    Row,
    gpu_of,
    kind_of_row,
    length_of,
    require_consistent,
    require_modelled,
    require_readable,
)

from vila_mc.planner.job import Decoder, Engine, Job, Learns, Recompute, Share, Tower
from vila_mc.topology.hardware import GPUS, Arithmetic

QWEN_72B = Decoder(  # Qwen2-72B's sizes, which fit the rows' FLOPs per token
    layers=80, width=8192, heads=64, kv_heads=8, head_width=128, ffn=29568, vocab=152_064
)
UNPRINTED = 8
"""Microbatches of each pipeline stage where a global batch is not printed: few bubbles."""


def published(row: Row) -> Published:
    """A row as a job. Raises NotModelledError, BrokenRowError among them."""
    require_readable(row)
    require_modelled(row)
    require_consistent(row)
    gpu = GPUS[gpu_of(row["hardware"])]
    share = _share(row)
    decoder = _decoder(row)
    engine = _engine(row)
    arithmetic, is_block = _arithmetic(row["precision"])
    tower, images, length, attended = _vision(row)
    if not length:
        raise BrokenRowError(f"seq is {row['seq']!r}, which says no positions")
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
        return QWEN_72B
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
        if not (layers := re.fullmatch(r"full/block/([0-9]{1,4})", given)):
            raise BrokenRowError(f"recompute is {given[:40]!r}; full/block/N says how many layers")
        return "full", min(1.0, int(layers[1]) * int(row["pp"] or 1) / decoder.layers)
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
    model, length = row["model"], length_of(row)
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

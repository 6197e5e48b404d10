"""Records as a run writes them, for tests of what is made of them."""

from collections.abc import Mapping
from typing import Any

from vila_mc.observe.record import FORMAT_VERSION, StartRecord, StepRecord


def step_record(step: int = 1, **figures: Any) -> StepRecord:
    """A step of two entries on two GPUs; ``figures`` are others."""
    usual = dict(
        loss=2.18341,
        grad_norm=0.9104,
        skipped=False,
        learning_rate=2e-5,
        trained_tokens=1000,
        images=3,
        samples=8,
        filled=0.98,
        substitutes=0,
        loss_by_entry=[0.5, None],
        step_ms=400.0,
        positions=2000,
        flops=3e14,
        tokens_per_second_per_rank=2500.0,
        images_per_second=7.5,
        tflops_per_rank=375.0,
        mfu=0.379,
        peak_memory_gib=61.7,
        data_ms=8.0,
        vision_ms=30.0,
        forward_ms=90.0,
        backward_ms=210.0,
        pipeline_ms=0.0,
        reduction_ms=40.0,
        optimizer_ms=20.0,
        other_ms=2.0,
        save_ms=0.0,
        busy_ms=358.0,
        slowest_rank=1,
        slowest_busy_ms=361.0,
    )
    return StepRecord(step=step, **{**usual, **figures})


def start_record(**facts: Any) -> StartRecord:
    """The start of a run on two GPUs."""
    usual = dict(
        format_version=FORMAT_VERSION,
        time=1.8e9,
        step=0,
        steps=100,
        phase="sft",
        ranks=2,
        restart=0,
        host="node-1",
        device="NVIDIA H100 80GB HBM3",
        layout={"tensor": 1, "pipeline": 1, "data": 2, "virtual": 1},
        versions={"vila_mc": "0.1.0"},
        git={"commit": "84db454", "is_modified": False},
        config={"train": {"steps": 100}},
    )
    return StartRecord(**{**usual, **facts})


def without_speed(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of the metrics says of learning: not how fast it was, nor where."""
    return {
        name: value
        for name, value in record.items()
        if "per_" not in name and not name.endswith("_ms") and name not in _OF_THE_MACHINE
    }


_OF_THE_MACHINE = ("mfu", "peak_memory_gib", "slowest_rank")

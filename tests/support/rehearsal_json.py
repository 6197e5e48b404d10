"""What ``train --rehearse --json`` prints, of made-up figures that fit a plan."""

from typing import Any

from vila_mc.planner.held import rank_weights
from vila_mc.planner.plan import Plan


def rehearsal_json(plan: Plan, word: str = "weight") -> dict[str, Any]:
    """A rehearsal of a plan's layout: one rank of each stage, and ``word`` in every text."""
    ranks = [_rank(plan, stage, word) for stage in range(plan.layout.pipeline)]
    layout = plan.layout
    return {
        "layout": {
            "tensor": layout.tensor,
            "pipeline": layout.pipeline,
            "data": layout.data,
            "virtual": layout.virtual,
        },
        "world_size": layout.world_size(),
        "microbatches": plan.job.microbatches(),
        "batch": {"rows": [{"images": round(plan.job.images)}], "origin": word},
        "matching": {"num_collectives": 321, "num_messages": 12, "differences": [word]},
        "complaints": [f"rank 0: {word}"],
        "is_good": False,
        "ranks": ranks,
        "seconds": 1.5,
    }


def _rank(plan: Plan, stage: int, word: str) -> dict[str, Any]:
    kinds = {"weights": 4, "gradients": 8, "optimizer": 6, "activations": 20, "temporary": 3}
    by_kind = {kind: size * 2**30 for kind, size in kinds.items()} | {word: 2**29}
    seen = sum(by_kind.values())
    tensor = dict(kind=word, op=word, where=word, shape=[4096, 4], dtype=word, count=2)
    peak = {
        "num_bytes": seen,
        "by_kind": by_kind,
        "tensors": [tensor | {"num_bytes": 2**30 - number} for number in range(20)],
    }
    traffic = dict(op=word, group=word, ranks=8, calls=17, num_bytes=2**25)
    return {
        "rank": stage * plan.layout.tensor * plan.layout.data,
        "tensor": 0,
        "pipeline": stage,
        "num_weights": round(rank_weights(plan.job, stage)),
        "num_trained": 1,
        "build": peak,
        "step": peak,
        "save": peak,
        "flops_of_a_step": {"forward": 1e12, "recompute": 1e12},
        "traffic_of_a_step": [traffic, traffic | {"group": "data"}],
        "room": {
            "gpu_bytes": 80 * 10**9,
            "seen": seen,
            "needed": seen + 2**30,
            "unseen": {word: 2**30},
            "fits": stage == 0,
        },
    }

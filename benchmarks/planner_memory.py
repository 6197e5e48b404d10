"""The planner's memory beside a rehearsal's, stage by stage, over a grid of 7B recipes.

The rehearsal counts every tensor of the real step; the planner multiplies sizes. They should agree
within 3 %.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from claims import Claim, parser, report

from vila_mc.config.load import load_run
from vila_mc.planner.constants import FITTED
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.memory import rank_memory
from vila_mc.topology.layout import Layout

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples/pretrain_7b.yaml"
NONE = {"train.recompute": "none"}
ALONE = {
    **NONE,
    "parallel.tensor": "1",
    "parallel.sequence": "false",
    "parallel.pipeline": "1",
}
GRID: dict[str, tuple[int, Mapping[str, str]]] = {
    "recomputation": (128, {"train.recompute": "full"}),
    "no recomputation": (128, NONE),
    "no recomputation, micro-batch 4": (128, {**NONE, "train.micro_batch": "4"}),
    "one rank of eight": (8, ALONE),
    "pipeline 4": (128, {**NONE, "parallel.pipeline": "4"}),
    "pipeline 2 x virtual 2": (128, {**NONE, "parallel.virtual": "2"}),
    "tensor 4, vision dedicated": (
        128,
        {**NONE, "parallel.tensor": "4", "parallel.vision_placement": "dedicated"},
    ),
    "the connector alone": (128, {**NONE, "train.trainable": "[connector]"}),
    "every part": (128, {**NONE, "train.trainable": "[vision, connector, language]"}),
    "adapters of rank 64": (128, {**NONE, "train.trainable": "[]", "lora.rank": "64"}),
}
"""Ranks and overrides by name."""
CONNECTORS = ("qformer", "transformer", "mlp2x_gelu", "pooling", "mlp_downsample_3x3_s2_new")
GRID |= {
    f"one rank of eight, {kind}": (8, {**ALONE, "model.connector.kind": kind})
    for kind in CONNECTORS
}
OTHERS = {"one rank of eight, Qwen3-8B": Path("preset:qwen3-8b")}
"""Language models in place of the recipe's, by case."""
GRID |= dict.fromkeys(OTHERS, (8, ALONE))
MOST = 0.03


def rehearsed(ranks: int, recipes: Sequence[Path], overrides: Mapping[str, str]) -> dict[int, int]:
    """Bytes at the peak of a step, by pipeline stage."""
    options = [word for name, value in overrides.items() for word in (f"--{name}", value)]
    options += [word for recipe in recipes for word in ("--config", str(recipe))]
    command = [sys.executable, "tools/train.py", *options]
    command += ["--rehearse", "--as-ranks", str(ranks), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(done.stderr.decode())
    peaks: dict[int, int] = {}
    for rank in json.loads(done.stdout)["ranks"]:
        stage, held = rank["pipeline"], rank["step"]["num_bytes"]
        peaks[stage] = max(held, peaks.get(stage, 0))
    return peaks


def main() -> int:
    """Rehearse, foretell, compare."""
    made = parser(__doc__)
    made.add_argument("--cases", nargs="*", default=list(GRID), metavar="NAME", help="of the grid")
    arguments = made.parse_args()
    claims, worst = [], 0.0
    for name in arguments.cases:
        ranks, overrides = GRID[name]
        recipes = [RECIPE, *([OTHERS[name]] if name in OTHERS else [])]
        config = load_run(recipes, {"data.blend": "[{path: none}]", **overrides})
        job = job_of(config, Layout.of(config.parallel, ranks))
        for stage, held in sorted(rehearsed(ranks, recipes, overrides).items()):
            foretold = rank_memory(job, stage, FITTED).total()
            worst = max(worst, abs(foretold / held - 1))
            how = f"{foretold / 2**30:.2f} of {held / 2**30:.2f} GiB"
            claims.append(Claim(f"{name}, stage {stage}: {how}", foretold / held, ""))
            print(f"{claims[-1].claim}: {foretold / held:.3f}", flush=True)
    claims.append(Claim("worst difference", worst, "", MOST, "lower"))
    return report(claims, arguments)


if __name__ == "__main__":
    raise SystemExit(main())

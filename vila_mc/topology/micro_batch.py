"""Rows of a forward pass, where a recipe does not say: arithmetic, the same on every machine.

The loss is the same for every micro-batch. A small model on a CPU is several times faster with many
rows at once than with one; what it costs is the memory that the backward pass waits for.
"""

from collections.abc import Collection

from vila_mc.config.run import RunConfig
from vila_mc.config.trainable import with_backward
from vila_mc.topology.layout import Layout
from vila_mc.topology.stage_plan import StagePlan, plan_stages, stages_of_rank

MOST_KEPT = 2**26
"""Numbers that one rank may keep for its backward passes: 256 MiB in fp32. More is no faster for a
small model, whose rows no longer fit a CPU's caches; of a large one, a single row keeps more."""
_FP32 = 4
"""Bytes of a number."""
_FEWEST_OF_A_STAGE = 4
"""Microbatches of a step for each pipeline stage: a fifth of the time is idle at most."""


def choose_micro_batch(config: RunConfig, layout: Layout) -> tuple[int, str]:
    """The greatest divisor of a data-parallel rank's rows that keeps within the limits.

    Returns:
        Rows, at least 1, and the reason, which goes on after them.
    """
    share = config.train.global_batch // layout.data
    kept = max(numbers_kept(config, layout, rank) for rank in range(layout.pipeline))
    stages = layout.pipeline if layout.pipeline > 1 else 0
    fitting = [
        rows
        for rows in range(1, min(share, MOST_KEPT // kept) + 1)
        if share % rows == 0
        and share // rows >= _FEWEST_OF_A_STAGE * stages
        and (layout.virtual == 1 or share // rows % layout.pipeline == 0)
    ]
    rows = max(fitting, default=1)
    if kept > MOST_KEPT:
        return rows, f"one row keeps about {kept:,} numbers for the backward pass"
    idle = f" and leave {_FEWEST_OF_A_STAGE} microbatches to each stage" if stages else ""
    most = f"{MOST_KEPT >> 20} Mi numbers for the backward pass (about {kept:,} each)"
    return rows, f"the most rows that keep at most {most}{idle}"


def numbers_kept(config: RunConfig, layout: Layout, pipeline_rank: int) -> int:
    """About how many numbers a rank keeps for the backward passes of a row, at most.

    A row counts as full of images, and the first stages hold a row for each stage behind them.
    """
    plans = plan_stages(config.model, config.parallel)
    mine = stages_of_rank(plans, pipeline_rank, layout.pipeline)
    under_way = layout.pipeline - pipeline_rank + (layout.virtual - 1) * layout.pipeline
    return under_way * sum(_kept_by_stage(config, plan) for plan in mine) // len(mine)


def _kept_by_stage(config: RunConfig, plan: StagePlan) -> int:
    """Numbers of a row; what tensor-parallel ranks do not share counts whole."""
    language, tensor, length = config.model.language, config.parallel.tensor, _length(config)
    whole = 4 * language.width // (tensor if config.parallel.sequence else 1)
    head = language.resolved_head_width()
    heads = 2 * language.heads + 2 * language.kv_heads  # what attention takes in and gives back
    shared = (heads * head + 3 * language.ffn) // tensor
    layer = language.width if config.train.recompute == "full" else whole + shared
    kept = with_backward(config.learning_pieces() | config.adapted_pieces(), config.model)
    numbers = length * layer * _layers_at_once(kept, "language", plan.layers)
    if plan.has_head:  # logits, their softmax and its gradient
        numbers += 3 * length * language.padded_vocab() // tensor
    if plan.has_vision:
        numbers += _kept_by_vision(config, kept)
    return numbers


def _layers_at_once(kept: Collection[str], part: str, layers: range) -> int:
    """How many of them hold numbers: those with a backward pass, or the one that is at work."""
    waiting = sum(f"{part}.layers.{layer}" in kept for layer in layers)
    return max(waiting, min(len(layers), 1))


def _kept_by_vision(config: RunConfig, kept: Collection[str]) -> int:
    """Of as many squares as a row has room for."""
    vision, tensor = config.model.vision, config.parallel.tensor
    squares = _length(config) // config.model.tile_positions()
    layers = _layers_at_once(kept, "vision", range(vision.built_layers()))
    layer = 4 * vision.width + (4 * vision.width + 2 * vision.ffn) // tensor
    numbers = squares * vision.positions() * layers * layer
    if "connector" in kept:
        ranks = tensor if config.splits_connector() else 1
        numbers += squares * round(config.model.connector_kept(_FP32, ranks) / _FP32)
    return numbers


def _length(config: RunConfig) -> int:
    return config.data.sequence_length

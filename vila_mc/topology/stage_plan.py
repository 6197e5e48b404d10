"""Which part of the model each pipeline stage holds, computed once and used by everyone.

A stage here is one chunk of the pipeline: with virtual stages, chunk ``c`` lives on pipeline
rank ``c % pipeline`` as its ``c // pipeline``-th virtual stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.config.checks import require
from vila_mc.config.model import ModelConfig
from vila_mc.config.parallel import ParallelConfig


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one (virtual) pipeline stage holds."""

    layers: range
    """Global indices of its LLM layers; empty for a dedicated vision stage."""
    has_vision: bool
    """Vision tower and connector."""
    has_embedding: bool
    """Token embedding, and the splice of visual tokens into it."""
    has_head: bool
    """Final norm, output layer and loss."""

    def needs_images(self) -> bool:
        """Whether the stage reads pixels."""
        return self.has_vision


def plan_stages(model: ModelConfig, parallel: ParallelConfig) -> tuple[StagePlan, ...]:
    """The plan of every stage, in the order a token flows through them.

    Raises:
        ConfigError: there are fewer LLM layers than stages to hold them, or they are divided in
            another way than the stages.
    """
    num_stages = parallel.pipeline * parallel.virtual
    is_dedicated = parallel.vision_placement == "dedicated"
    language_stages = num_stages - 1 if is_dedicated else num_stages
    num_layers = model.language.layers
    require(
        num_layers >= language_stages,
        f"model.language.layers {num_layers} is less than the {language_stages} stages that hold "
        "LLM layers (parallel.pipeline x parallel.virtual). Use fewer stages.",
    )
    counts = [0] * is_dedicated + _spread(num_layers, language_stages)
    if parallel.layers_per_stage is not None:
        counts = _as_given(parallel, num_layers, num_stages)
    plans, start = [], 0
    for stage, count in enumerate(counts):
        plans.append(
            StagePlan(
                layers=range(start, start + count),
                has_vision=stage == 0,
                has_embedding=stage == 0,
                has_head=stage == num_stages - 1,
            )
        )
        start += count
    return tuple(plans)


def stages_of_rank(
    plans: Sequence[StagePlan], pipeline_rank: int, pipeline: int
) -> tuple[StagePlan, ...]:
    """The stages that one pipeline rank holds: one, or one per virtual stage."""
    return tuple(plans[pipeline_rank::pipeline])


def megatron_layout(plans: Sequence[StagePlan]) -> str:
    """The plans in Megatron-Core's pipeline layout language, for example ``E|tt|ttL``."""
    return "|".join(
        "E" * plan.has_embedding + "t" * len(plan.layers) + "L" * plan.has_head for plan in plans
    )


def _as_given(parallel: ParallelConfig, num_layers: int, num_stages: int) -> list[int]:
    """What ``parallel.layers_per_stage`` says, if it can be."""
    counts = list(parallel.layers_per_stage or ())
    given = f"parallel.layers_per_stage is {counts}"
    require(
        len(counts) == num_stages,
        f"{given}, but there are {num_stages} stages (parallel.pipeline x parallel.virtual). "
        "Give a number for each, or leave it out.",
    )
    require(
        sum(counts) == num_layers,
        f"{given}, which are {sum(counts)} layers, and model.language.layers is {num_layers}. "
        "Change one of them.",
    )
    is_dedicated = parallel.vision_placement == "dedicated"
    require(
        min(counts[is_dedicated:]) > 0 and (not is_dedicated or counts[0] == 0),
        f"{given}. Each stage needs a layer, but for the first where parallel.vision_placement is "
        "dedicated, which has none.",
    )
    return counts


def _spread(layers: int, stages: int) -> list[int]:
    """Spread layers evenly; what is left over goes to the inner stages first.

    The first stage also has the embedding (and perhaps vision) and the last the output layer, so
    they are the last to get one more.
    """
    base, extra = divmod(layers, stages)
    by_preference = [*range(1, stages - 1), stages - 1, 0] if stages > 1 else [0]
    gets_more = set(by_preference[:extra])
    return [base + (stage in gets_more) for stage in range(stages)]

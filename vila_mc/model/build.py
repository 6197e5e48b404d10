"""Build the stages that one rank holds."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from vila_mc.config.run import RunConfig
from vila_mc.model.freeze import end_backward_where_nothing_learns, freeze_all_but
from vila_mc.model.lora import start_adapters
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.stage_plan import plan_stages, stages_of_rank


def build_stages(config: RunConfig, ranks: Ranks) -> list[VilaModel]:
    """This rank's stages on its device, frozen as ``config.train.trainable`` says; adapters learn.

    Fresh weights come from ``config.train.seed`` and do not depend on the tensor-parallel size.
    """
    plans = stages_of_rank(
        plan_stages(config.model, config.parallel), ranks.at.pipeline, config.parallel.pipeline
    )
    torch.manual_seed(config.train.seed + ranks.at.pipeline)
    stages = []
    for index, plan in enumerate(plans):
        virtual_stage = index if config.parallel.virtual > 1 else None
        stage = VilaModel(config, plan, ranks.groups, virtual_stage).to(ranks.device)
        freeze_all_but(stage, config.learning_pieces())
        start_adapters(stage, config.train.seed)
        stages.append(stage)
    end_backward_where_nothing_learns(stages, ranks)
    return stages


def count_weights(stages: Sequence[VilaModel], ranks: Ranks, *, trained_only: bool = False) -> int:
    """Parameters of the whole model; every rank must call this together.

    Weights split by tensor parallelism are counted on every rank, the others on one; the copy of a
    tied embedding on the last stage is not counted.
    """
    mine = sum(
        weight.numel()
        for stage in stages
        for weight in stage.parameters()
        if (getattr(weight, "tensor_model_parallel", False) or ranks.at.tensor == 0)
        and not getattr(weight, "shared", False)
        and (weight.requires_grad or not trained_only)
    )
    total = torch.tensor([mine], dtype=torch.int64, device=ranks.device)
    dist.all_reduce(total, group=ranks.groups.mp)
    return int(total.item())

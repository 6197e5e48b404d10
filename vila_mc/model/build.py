"""Build the stages that one rank holds."""

import torch

from vila_mc.config.run import RunConfig
from vila_mc.model.freeze import freeze_all_but
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.stage_plan import plan_stages, stages_of_rank


def build_stages(run: RunConfig, ranks: Ranks) -> list[VilaModel]:
    """This rank's stages on its device, frozen as ``run.train.trainable`` says.

    Fresh weights come from ``run.train.seed`` and do not depend on the tensor-parallel size.
    """
    plans = stages_of_rank(
        plan_stages(run.model, run.parallel), ranks.at.pipeline, run.parallel.pipeline
    )
    torch.manual_seed(run.train.seed + ranks.at.pipeline)
    stages = []
    for index, plan in enumerate(plans):
        virtual_stage = index if run.parallel.virtual > 1 else None
        stage = VilaModel(run, plan, ranks.groups, virtual_stage).to(ranks.device)
        freeze_all_but(stage, run.train.trainable)
        stages.append(stage)
    return stages

"""Which parts of a model learn, and where a gradient need not go."""

import re
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.distributed as dist

from vila_mc.config.trainable import piece_of
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks

_LAYER = re.compile(r"(?<=^language\.decoder\.layers\.)\d+")


def freeze_all_but(stage: VilaModel, learning: Collection[str]) -> None:
    """Freeze every piece of a stage that is not named, see ``config.trainable``.

    Frozen parameters get no gradient buffer and no optimizer state, so this must come before the
    model is wrapped for data parallelism.
    """
    for piece, weight in weights_by_piece(stage):
        weight.requires_grad_(piece in learning)


def weights_by_name(stage: VilaModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of a stage and its name in the whole model: layers are counted over all."""
    first = stage.plan.layers.start
    for name, weight in stage.named_parameters():
        yield _LAYER.sub(lambda layer: str(first + int(layer[0])), name), weight


def weights_by_piece(stage: VilaModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of a stage and the piece it belongs to, see ``config.trainable``."""
    return ((piece_of(name), weight) for name, weight in weights_by_name(stage))


def end_backward_where_nothing_learns(stages: Sequence[VilaModel], ranks: Ranks) -> None:
    """Tell each stage whether anything below it learns; all pipeline ranks must call together.

    It goes by the parameters, when all of them are there and frozen or not.

    Args:
        stages: this rank's stages.
        ranks: this rank and its groups.
    """
    pipeline = ranks.layout.pipeline
    mine = range(ranks.at.pipeline, pipeline * len(stages), pipeline)
    by_stage = torch.zeros(pipeline * len(stages), dtype=torch.int32, device=ranks.device)
    for place, stage in zip(mine, stages, strict=True):
        by_stage[place] = any(weight.requires_grad for weight in stage.parameters())
    dist.all_reduce(by_stage, group=ranks.groups.pp)
    for place, stage in zip(mine, stages, strict=True):
        stage.learns_below = bool(by_stage[:place].any())

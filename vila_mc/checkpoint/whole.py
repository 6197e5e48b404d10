"""A trained model to evaluate, whole or shared by ranks, from a checkpoint of any layout."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.fp8 import Fp8Config
from vila_mc.config.parallel import ParallelConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import Precision
from vila_mc.errors import ConfigError
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.topology.stage_plan import plan_stages

BeforeLoading = Callable[[RunConfig, Ranks], None]
"""Told on every rank what is about to be loaded."""


@contextmanager
def whole_model(
    path: Path,
    tensor: int = 1,
    before_loading: BeforeLoading | None = None,
    precision: Precision = "fp32",
) -> Iterator[tuple[VilaModel, Manifest]]:
    """Load a checkpoint of any layout, ready to evaluate.

    Args:
        path: a step-* directory, or a directory of them (the newest is taken).
        tensor: tensor-parallel ranks that hold one copy together; the other ranks that were started
            hold further copies.
        before_loading: told what is about to be loaded; it may refuse.
        precision: of weights and activations.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: the model or the ranks do not divide by ``tensor``.
    """
    directory = resolve_checkpoint(path)
    manifest = Manifest.read(directory)
    config = to_evaluate(manifest.config, tensor, precision)
    with distributed(config.parallel, seed=config.train.seed) as ranks:
        if before_loading is not None:
            before_loading(config, ranks)
        stages = build_stages(config, ranks)
        load_weights(directory, stages)
        yield stages[0].eval(), manifest


@contextmanager
def weightless_model(config: RunConfig) -> Iterator[VilaModel]:
    """The whole model of a run on one rank, its weights on torch's meta device: no memory."""
    single = to_evaluate(config)
    with distributed(single.parallel, seed=config.train.seed) as ranks:
        (plan,) = plan_stages(single.model, single.parallel)
        with torch.device("meta"):
            model = VilaModel(single, plan, ranks.groups)
        # Not a weight, so it is needed as it is.
        vision: Any = model.vision
        vision.position_ids = torch.arange(vision.seq_length).expand(1, -1)
        yield model.eval()


def to_evaluate(config: RunConfig, tensor: int = 1, precision: Precision = "fp32") -> RunConfig:
    """The same run on one stage and torch's layers, to evaluate anywhere.

    Raises:
        ConfigError: the model does not divide by ``tensor``.
    """
    train = dataclasses.replace(
        config.train,
        precision=precision,
        fp8=Fp8Config(),
        recompute="none",
        layers="torch",
        vision_layers=None,
    )
    try:
        return dataclasses.replace(config, parallel=ParallelConfig(tensor=tensor), train=train)
    except ConfigError as error:
        if tensor == 1:
            raise
        why = str(error).split(". ")[0]
        raise ConfigError(
            f"{tensor} ranks cannot hold one copy of this model together: {why}. Use fewer.",
            option="tensor",
        ) from None

"""What a rank does in the tests of adapters: train them beside frozen weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.layout_trace import NUM_STEPS, Trace
from tests.parity.packed_trace import MICRO_BATCH, NUM_ROWS, microbatches
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.base import base_of_run
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.config.lora import is_adapter
from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch
from vila_mc.model.build import build_stages
from vila_mc.model.lora import _in_whole_model
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.step import Trainer

EVERYWHERE = dict(rank=4, vision_targets=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
"""Adapters on everything that can have one."""
Sections = dict[str, dict[str, Any]]

PLAIN: Sections = {"lora": EVERYWHERE}
SEQUENCE: Sections = {"lora": EVERYWHERE, "parallel": dict(sequence=True)}
PACKED: Sections = {
    "lora": EVERYWHERE,
    "train": dict(micro_batch=MICRO_BATCH, global_batch=NUM_ROWS),
}
PACKED_SEQUENCE = PACKED | {"parallel": dict(sequence=True)}
RECOMPUTE: Sections = {"lora": dict(rank=4), "train": dict(recompute="full", trainable=[])}
ALONE: Sections = {"lora": dict(rank=4), "train": dict(trainable=[])}
DROPPED: Sections = {
    "lora": dict(
        rank=4, dropout=0.3, targets=["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    )
}
SOME: Sections = {"lora": dict(rank=3, alpha=2, targets=["k_proj", "up_proj"])}


def traces(seed: Path, parallel: dict[str, Any], variants: Sequence[Sections]) -> list[Trace]:
    """A trace of every variant, all on the same ranks; B is not zero at their start."""
    found = []
    with distributed(tiny_run(parallel=parallel).parallel, seed=1, timeout_minutes=2) as ranks:
        for variant in variants:
            config = lora_run(parallel, variant)
            stages = build_stages(config, ranks)
            load_weights(seed, stages)
            for stage in stages:
                make_adapters_matter(stage, ranks)
            trainer = Trainer(config, ranks, stages)
            batches = batches_of(config, ranks)
            results = [trainer.step(batches) for _ in range(NUM_STEPS)]
            found.append([(result.loss, result.grad_norm) for result in results])
    return found


def train_and_save(
    directory: Path, source: Path, parallel: dict[str, Any], variant: Sections, steps: int
) -> Trace:
    """Train from the weights of ``source``, or go on from its adapters where it is ``directory``;
    save as a run does, without what is in the base."""
    config = lora_run(parallel, variant | {"train": {"output": str(directory)}})
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(config, ranks)
        is_resumed = source == directory
        if not is_resumed:
            load_weights(source, stages)
            for stage in stages:
                make_adapters_matter(stage, ranks)
        trainer = Trainer(config, ranks, stages)
        before = resolve_checkpoint(source)
        manifest = trainer.resume(before) if is_resumed else Manifest.read(before)
        base = base_of_run(before, manifest, stages, directory)
        batches = batches_of(config, ranks)
        results = [trainer.step(batches) for _ in range(steps)]
        done = steps + (manifest.step if is_resumed else 0)
        saved = Manifest(
            step=done,
            samples_seen=8 * done,
            config=config,
            layout=ranks.layout,
            versions=versions(),
        )
        directory.mkdir(parents=True, exist_ok=True)
        PendingSave(
            saved, ranks, stages, trainer.optimizer, base=base, in_background=False
        ).finish()
        return [(result.loss, result.grad_norm) for result in results]


def lora_run(parallel: dict[str, Any], variant: Sections) -> RunConfig:
    """A run of the tiny model that trains its connector and adapters."""
    return tiny_run(
        parallel=parallel | variant.get("parallel", {}),
        train={"trainable": ["connector"]} | variant.get("train", {}),
        lora=variant["lora"],
    )


def batches_of(config: RunConfig, ranks: Ranks) -> list[Microbatch]:
    """This rank's share of the fixed batch: packed rows where a variant has more than one."""
    if config.train.micro_batch == MICRO_BATCH:
        return microbatches(config, packed=True)[ranks.at.data :: ranks.layout.data]
    return tiny_microbatches(config, ranks.at.data, ranks.layout.data)


def adapters_of(stage: VilaModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Names in the whole model, and this rank's shards."""
    for name, weight in stage.named_parameters():
        if is_adapter(name):
            yield _in_whole_model(name, stage), weight


@torch.no_grad()
def make_adapters_matter(stage: VilaModel, ranks: Ranks) -> None:
    """Give every B values of its own: at zero it would hide most of what can be wrong."""
    for name, weight in adapters_of(stage):
        if ".lora_b_" in name:
            weight.copy_(_shard(name, weight, ranks))


def _shard(name: str, weight: nn.Parameter, ranks: Ranks) -> Tensor:
    is_split = getattr(weight, "tensor_model_parallel", False)
    rows = weight.size(0) * (ranks.layout.tensor if is_split else 1)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    whole = 0.1 * torch.randn(rows, weight.size(1), generator=generator)
    return whole.chunk(ranks.layout.tensor)[ranks.at.tensor] if is_split else whole

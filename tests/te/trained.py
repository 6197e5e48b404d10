"""What ranks with an emulated Transformer Engine do in the tests here."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing

from tests.parity import layout_trace, packed_trace
from tests.parity.layout_trace import Trace
from tests.support.tiny import tiny_run
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.safe_index import nothing_foreign_unpickled
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model import layer_specs
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

TE = {"layers": "transformer_engine"}


def packed(seed: Path, parallel: dict[str, Any], **train: Any) -> Trace:
    """The trace of packed samples with Transformer Engine's layers."""
    return packed_trace.trace_of_samples(seed, parallel, True, **TE, **train)


def packed_with_its_own_attention(seed: Path) -> Trace:
    """The same with Transformer Engine's attention between its projections."""
    layer_specs._with_our_attention = lambda layer: layer
    return packed(seed, {})


def kinds_of_modules(train: dict[str, Any]) -> dict[str, str]:
    """What the linear layers and norms of each part are."""
    config = tiny_run(train=train)
    with distributed(config.parallel, seed=1) as ranks:
        (stage,) = build_stages(config, ranks)
        language: Any = stage.language.decoder
        vision: Any = stage.vision.decoder
        return {
            "language": type(language.layers[0].mlp.linear_fc1).__name__,
            "final norm": type(language.final_layernorm).__module__.split(".")[0],
            "vision": type(vision.layers[0].mlp.linear_fc1).__name__,
        }


def begin(
    directory: Path, seed: Path, parallel: dict[str, Any], train: dict[str, Any], steps: int
) -> Trace:
    """Train from the seed, and save."""
    return layout_trace.resumed_trace(
        directory, seed, parallel, steps=steps, save=True, train=train
    )


def go_on(
    directory: Path, seed: Path, parallel: dict[str, Any], train: dict[str, Any], steps: int
) -> Trace:
    """Resume from what ``begin`` saved."""
    return layout_trace.resumed_trace(
        directory, seed, parallel, steps=steps, save=False, train=train
    )


def carry(source: Path, target: Path, parallel: dict[str, Any], train: dict[str, Any]) -> None:
    """Resume, and save at once, elsewhere."""
    config = tiny_run(parallel=parallel, train={**train, "output": str(target)})
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        before = trainer.resume(source)
        manifest = Manifest(
            step=before.step,
            samples_seen=0,
            config=config,
            layout=ranks.layout,
            versions=before.versions,
        )
        target.mkdir(exist_ok=True)
        PendingSave(
            manifest, ranks, trainer.stages, trainer.optimizer, in_background=False
        ).finish()


def tensors_in(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint, moments too, but for random generators."""
    with distributed(tiny_run().parallel, seed=1), nothing_foreign_unpickled():
        tensors = dist_checkpointing.load_plain_tensors(str(resolve_checkpoint(directory)))
    return {
        name: tensor.view(torch.uint8).numpy()
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def weights_in_stage(directory: Path, train: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every weight that a whole model has after loading."""
    config = tiny_run(train=train)
    with distributed(config.parallel, seed=1) as ranks:
        (stage,) = build_stages(config, ranks)
        load_weights(directory, [stage])
        return {name: weight.detach().numpy() for name, weight in stage.named_parameters()}


def unbroken(seed: Path, parallel: dict[str, Any], train: dict[str, Any]) -> Trace:
    """Train from the seed without a stop."""
    (trace,) = layout_trace.trace(seed, parallel, train=train)
    return trace

"""A tiny model, and adapters beside it that matter, as checkpoints."""

from pathlib import Path
from typing import Any

import torch

from tests.parity.lora_trace import make_adapters_matter
from tests.unit.checkpoint.conftest import save, trainer
from tests.unit.convert.independent_vila import VOCABULARY
from vila_mc.checkpoint.base import base_of_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave

LORA: dict[str, Any] = dict(rank=3, alpha=4.5, targets=["q_proj", "v_proj", "up_proj", "down_proj"])
MODEL = {
    "language": dict(
        layers=2,
        width=64,
        ffn=96,
        heads=4,
        kv_heads=2,
        vocab_size=VOCABULARY,
        max_positions=512,
    )
}


def write_checkpoint(
    output: Path, lora: dict[str, Any], trainable: list[str], load: Path | None
) -> Path:
    """A base if ``load`` is none, or adapters beside it and what learned with them."""
    sections: dict[str, Any] = {"train": {"output": str(output), "trainable": trainable}}
    with trainer(model=MODEL, lora=lora, **sections) as made:
        if load is None:
            return save(made, step=1)
        manifest = load_weights(load, made.stages)
        base = base_of_run(load, manifest, made.stages, output)
        make_adapters_matter(made.stages[0], made.ranks)
        with torch.no_grad():
            for weight in made.stages[0].parameters():
                if weight.requires_grad:
                    weight.add_(0.01)
        said = Manifest(
            step=2, samples_seen=0, config=made.config, layout=None, versions=versions()
        )
        output.mkdir()
        return PendingSave(
            said, made.ranks, made.stages, made.optimizer, base=base, in_background=False
        ).finish()

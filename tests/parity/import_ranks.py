"""What a rank does in the tests of imports, apart from them: it needs no transformers."""

from pathlib import Path
from typing import Any

from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


def load_and_save(imported: Path, output: Path, parallel: dict[str, Any]) -> None:
    """What a rank does: start from the import at a layout, save at once."""
    values = run_to_dict(Manifest.read(resolve_checkpoint(imported)).config)
    values["parallel"] |= parallel
    values["train"] |= {"output": str(output), "global_batch": 4}
    config = run_from_dict(values)
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(config, ranks)
        load_weights(imported, stages)
        trainer = Trainer(config, ranks, stages)
        output.mkdir(exist_ok=True)
        manifest = Manifest(step=1, samples_seen=0, config=config, layout=None, versions=versions())
        PendingSave(manifest, ranks, stages, trainer.optimizer, in_background=False).finish()

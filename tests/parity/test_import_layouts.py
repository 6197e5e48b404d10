"""An import is the same at every layout, and what any layout saves is exported the same."""

import pytest
import torch

from tests.support import families
from tests.support.ranks import run_ranks
from vila_mc.checkpoint.hf.import_checkpoint import import_checkpoint
from vila_mc.checkpoint.hf.import_hf import combine
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, resolve_checkpoint, versions
from vila_mc.checkpoint.save import save_checkpoint
from vila_mc.checkpoint.stream import open_checkpoint, weightless_model
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

CASES = {
    "qwen2 on SigLIP": {"tensor": 2, "pipeline": 2},
    "llama 3 on CLIP": {"tensor": 2},  # twice, data parallel
}
NUM_RANKS = 4


def _load_and_save(imported, output, parallel):
    """What a rank does: start from the import at a layout, save at once."""
    values = run_to_dict(Manifest.read(resolve_checkpoint(imported)).run)
    values["parallel"] |= parallel
    values["train"] |= {"output": str(output), "global_batch": 4}
    run = run_from_dict(values)
    with distributed(run.parallel, seed=1, timeout_minutes=2) as ranks:
        stages = build_stages(run, ranks)
        load_weights(imported, stages)
        trainer = Trainer(run, ranks, stages)
        manifest = Manifest(step=1, samples_seen=0, run=run, layout="", versions=versions())
        save_checkpoint(manifest, ranks, stages, trainer.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_import_passes_through_a_layout_unchanged(name, tmp_path):
    family = families.make(name)
    family.save(tmp_path)
    source = combine(tmp_path / "llm", tmp_path / "vision", family.connector)
    import_checkpoint(source, tmp_path / "imported")
    run_ranks(NUM_RANKS, _load_and_save, tmp_path / "imported", tmp_path / "saved", CASES[name])
    directory = resolve_checkpoint(tmp_path / "saved")
    with weightless_model(Manifest.read(directory).run) as model:
        tensors = open_checkpoint(directory, model)
    assert tensors.keys() == source.tensors.keys()
    for tensor, values in source.tensors.items():
        assert torch.equal(tensors[tensor].read(), values.read()), tensor

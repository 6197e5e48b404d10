"""An import is the same at every layout, and what any layout saves is exported the same."""

from pathlib import Path

import pytest
import torch

from tests.parity.import_ranks import load_and_save
from tests.support import families
from tests.support.ranks import run_ranks
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.import_checkpoint import import_checkpoint

CASES = {
    "qwen2 on SigLIP": {"tensor": 2, "pipeline": 2},
    "llama 3 on CLIP": {"tensor": 2},  # twice, data parallel
}
NUM_RANKS = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_import_passes_through_a_layout_unchanged(name: str, tmp_path: Path) -> None:
    family = families.make(name)
    family.save(tmp_path)
    source = combine_parts(tmp_path / "llm", tmp_path / "vision", family.connector)
    import_checkpoint(source, tmp_path / "imported")
    run_ranks(NUM_RANKS, load_and_save, tmp_path / "imported", tmp_path / "saved", CASES[name])
    directory = resolve_checkpoint(tmp_path / "saved")
    tensors = open_checkpoint(directory, Manifest.read(directory).config.model)
    assert tensors.keys() == source.tensors.keys()
    for tensor, values in source.tensors.items():
        assert torch.equal(tensors[tensor].read(), values.read()), tensor

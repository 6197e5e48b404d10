"""What a checkpoint says about itself, without its weights being read."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny import tiny_run
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.convert.describe import describe
from vila_mc.convert.formats.registry import FORMATS
from vila_mc.convert.formats.write_export import write_export
from vila_mc.data.chat_templates import BUILT_IN
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import model_parameters

WHAT = {
    "hf-vila": "a whole model, hf-vila",
    "hf-llava": "a whole model, hf-llava",
    "vila": "a whole model, vila",
    "llm": "a language model, llm",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_of_hugging_face(kind: str, tokenizer_path: Path, tmp_path: Path) -> None:
    model = tiny_model("mlp2x_gelu")
    state = build(model).canonical()
    write_export(lazily(state), model, tokenizer_path, tmp_path / "out", format=kind)
    facts = dict(describe(tmp_path / "out"))
    assert facts["what"] == WHAT[kind]
    assert f"vocabulary {VOCABULARY}" in facts["language"]
    padded = 2 * (512 - VOCABULARY) * model.language.width  # rows that training adds
    count = sum(p.numel() for p in build(model).llama.parameters()) + padded
    assert facts["language weights"].startswith(f"{count:,} in 15 tensors, bfloat16")
    assert ("vision" in facts) == (kind != "llm")
    assert facts.get("chat template") == (None if kind == "llm" else "vicuna_v1")


def test_of_a_tower_alone(tmp_path: Path) -> None:
    build(tiny_model()).clip.save_pretrained(tmp_path)
    facts = dict(describe(tmp_path))
    assert facts["what"] == "a vision tower"
    assert "clip, 3 layers (2 used)" in facts["vision"]


def test_of_training(tmp_path: Path) -> None:
    config = tiny_run(train={"output": str(tmp_path)})
    state = {each.name: torch.zeros(each.shape) for each in model_parameters(config.model)}
    write_weights_checkpoint(config, lazily(state), "the test")
    facts = dict(describe(tmp_path))
    assert facts["what"].startswith("a training checkpoint")
    assert facts["weights"] == f"{sum(tensor.numel() for tensor in state.values()):,}"
    assert "float32" in facts["connector weights"]
    assert facts["chat template"] == "not recorded"
    (checkpoint,) = tmp_path.glob("step-*")
    for recorded, said in (("plain", "plain"), (BUILT_IN["chatml"].describe(), "chatml")):
        replace(Manifest.read(checkpoint), template=recorded).write(checkpoint)
        assert dict(describe(tmp_path))["chat template"] == said
    (shard,) = tmp_path.glob("step-*/*.distcp")
    os.truncate(shard, 100)
    with pytest.raises(CheckpointError, match=r"damaged: __0_0.distcp has 100 of [\d,]+ bytes"):
        dict(describe(tmp_path))

"""A tower that another phase trained at another image size, under train.interpolate_positions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from tests.support.tiny import tiny_run
from tests.unit.checkpoint.conftest import trainer
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.positions import POSITIONS, stretching_line
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.config.load import run_to_dict
from vila_mc.config.model import VisionConfig
from vila_mc.config.train import MODEL_PARTS, ModelPart
from vila_mc.errors import CheckpointError
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed

STRETCHED = {"interpolate_positions": True}


def _larger(image_size: int = 42, **train: Any) -> dict[str, Any]:
    vision = run_to_dict(tiny_run())["model"]["vision"]
    return {"model": {"vision": vision | {"image_size": image_size}}, "train": train}


def _as_transformers_stretch(table_pe: Tensor, vision: VisionConfig) -> Tensor:
    """Of images of 28 pixels, by CLIP's own class."""
    heads, width, patch = vision.heads, vision.width, vision.patch_size
    sizes = dict(image_size=28, patch_size=patch, hidden_size=width, num_attention_heads=heads)
    embeddings = CLIPVisionEmbeddings(CLIPVisionConfig(**sizes))
    embeddings.position_embedding.weight.data = table_pe
    tokens = torch.zeros(1, vision.positions(), vision.width)
    side = vision.image_size
    stretched: Tensor = embeddings.interpolate_pos_encoding(tokens, side, side)
    return stretched[0].detach()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_positions_are_stretched_and_all_else_stays(checkpoint: Path, precision: str) -> None:
    config = tiny_run(**_larger(precision=precision, **STRETCHED))
    stored = open_checkpoint(checkpoint, Manifest.read(checkpoint).config.model)
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        manifest = load_weights(checkpoint, stages)
        loaded = {name: weight.detach() for name, weight in stages[0].named_parameters()}
    dtype = loaded[POSITIONS].dtype
    for name, tensor in stored.items():
        expected = tensor.read()
        if name == POSITIONS:
            expected = _as_transformers_stretch(expected, config.model.vision)
        assert torch.equal(loaded[name], expected.to(dtype)), name
    line = "position embeddings are interpolated from 4 x 4 patches to 6 x 6, for images of 42"
    assert stretching_line(manifest, config, MODEL_PARTS) == f"{line} pixels"
    assert stretching_line(manifest, tiny_run(), MODEL_PARTS) == ""
    assert stretching_line(manifest, config, ("language",)) == ""


@pytest.mark.parametrize(
    ("parts", "train"), [(MODEL_PARTS, {}), (("vision", "connector"), {}), (("vision",), {})]
)
def test_without_the_option_it_is_refused(
    checkpoint: Path, parts: tuple[ModelPart, ...], train: dict[str, Any]
) -> None:
    config = tiny_run(**_larger(**train))
    with distributed(config.parallel, seed=1) as ranks:
        stages = build_stages(config, ranks)
        with pytest.raises(CheckpointError) as refused:
            load_weights(checkpoint, stages, parts)
    message = str(refused.value)
    assert "model.vision.image_size: checkpoint 28, run 42." in message
    assert message.endswith("; train.interpolate_positions lets train.load stretch a tower.")
    assert "\n" not in message


def test_a_run_does_not_go_on_at_another_size(checkpoint: Path) -> None:
    with (
        trainer(**_larger(**STRETCHED)) as resumed,
        pytest.raises(CheckpointError, match="image_size: checkpoint 28, run 42"),
    ):
        resumed.resume(checkpoint)

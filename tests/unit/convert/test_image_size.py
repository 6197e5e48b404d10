"""A tower for images of another size: its positions are those that transformers interpolates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.support import families
from tests.support.families import PATCH
from vila_mc.checkpoint.positions import POSITIONS
from vila_mc.checkpoint.whole import whole_model
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.proof import fresh_request
from vila_mc.convert.proof.compare_source import compare_source
from vila_mc.convert.proof.fresh_process import answer_requests
from vila_mc.errors import CheckpointError, ConfigError
from vila_mc.kernels.reference import normalize_images
from vila_mc.model.positions import interpolate_positions

SIZES = {  # larger and smaller; odd and even grids; pixels at the edge that fill no patch
    "mistral on CLIP": (6 * PATCH, 2 * PATCH),
    "qwen2 on SigLIP": (5 * PATCH + 3, 2 * PATCH),
}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def _imported(name: str, size: int, folder: Path) -> tuple[families.Family, ForeignModel]:
    family = families.make(name)
    family.save(folder)
    source = combine_parts(folder / "llm", folder / "vision", family.connector, image_size=size)
    return family, source


@pytest.mark.parametrize(("name", "size"), CASES)
def test_features_are_those_of_transformers(
    name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, source = _imported(name, size, tmp_path)
    vision = source.model.vision
    tower = family.vision_model()
    pixels = torch.zeros(1, 3, size, size)
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    tokens = torch.zeros(1, vision.facts().class_tokens + patches.shape[1], vision.width)
    expected = tower.embeddings.interpolate_pos_encoding(tokens, size, size)
    assert torch.equal(source.tensors[POSITIONS].read(), expected[0])
    grid = size // PATCH
    said = capsys.readouterr().out
    assert said == (
        f"position embeddings are interpolated from 3 x 3 patches to {grid} x {grid}, for images "
        f"of {size} pixels\n"
    )

    import_checkpoint(source, tmp_path / "ours")
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    statistics = vision.resolved_channel_mean(), vision.resolved_channel_std()
    normalised = normalize_images(images, torch.float32, *statistics)
    with whole_model(tmp_path / "ours") as (ours, _), torch.inference_mode():
        states = tower(normalised, output_hidden_states=True, interpolate_pos_encoding=True)
        difference = ours.patch_features(images) - states.hidden_states[-2]
        assert difference.abs().max() < 1e-5


def test_another_size_with_the_same_patches_keeps_the_table(tmp_path: Path) -> None:
    family, source = _imported("qwen2 on SigLIP", 3 * PATCH + 4, tmp_path)
    table = family.vision_model().embeddings.position_embedding.weight
    assert torch.equal(source.tensors[POSITIONS].read(), table)
    assert source.model.vision.image_size == 3 * PATCH + 4


def test_a_size_that_patches_do_not_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size 30 is not a multiple of"):
        _imported("mistral on CLIP", 30, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_import_is_proven_and_another_interpolation_found(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_request, "_run", lambda folder, _: answer_requests(folder))
    for name, sizes in SIZES.items():
        folder = tmp_path / name
        _, source = _imported(name, sizes[0], folder)
        import_checkpoint(source, folder / "ours", precision)
        proof = compare_source(source, folder / "ours")
        assert {"logits", "features"} <= {text.split()[0] for text in proof.proven}

    interpolate = functional.interpolate

    def bilinear(tensor: torch.Tensor, size: Any, **_: Any) -> torch.Tensor:
        return interpolate(tensor, size, mode="bilinear")

    with monkeypatch.context() as context:
        context.setattr(functional, "interpolate", bilinear)
        import_checkpoint(source, tmp_path / "wrong", precision)
    with pytest.raises(CheckpointError, match=r"the features of .*vision differ"):
        compare_source(source, tmp_path / "wrong")


def test_a_grid_of_the_same_side_is_left_bit_by_bit() -> None:
    table = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(interpolate_positions(table, 1, 3), table)

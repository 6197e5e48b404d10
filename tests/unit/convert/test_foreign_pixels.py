"""An image processor's file is followed where training can, and refused by name where it cannot."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vila_mc.config.families import CLIP, SIGLIP
from vila_mc.config.model import VisionConfig
from vila_mc.convert.families.pixels import preprocessor_json, read_pixels
from vila_mc.errors import CheckpointError

CLIP_TOWER = VisionConfig(image_size=28, patch_size=7)
SIGLIP_TOWER = VisionConfig(family="siglip", image_size=28, patch_size=7, image_mode="resize")
SQUARE = {"height": 28, "width": 28}
HALVES = [0.5, 0.5, 0.5]

FOLLOWED = [  # what is written, and the mode, mean and deviation that it means for a CLIP
    ({}, "crop", None, None),
    ({"image_processor_type": "CLIPImageProcessorFast"}, "crop", None, None),
    ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 28}, "crop", None, None),
    ({"crop_size": 28, "size": {"shortest_edge": 28}}, "crop", None, None),
    ({"size": SQUARE, "crop_size": SQUARE}, "resize", None, None),
    ({"size": SQUARE, "do_center_crop": False, "crop_size": None}, "resize", None, None),
    ({"do_pad": True, "image_processor_type": "LlavaImageProcessor"}, "pad", None, None),
    ({"do_pad": True, "image_mean": HALVES, "image_std": HALVES}, "pad", (0.5,) * 3, (0.5,) * 3),
    ({"image_mode": "pad", "image_processor_type": "VilaImageProcessor"}, "pad", None, None),
    ({"image_mean": HALVES, "image_std": HALVES}, "crop", (0.5,) * 3, (0.5,) * 3),
    ({"image_std": [1, 1, 1]}, "crop", None, (1.0,) * 3),
    ({"image_mean": list(CLIP.channel_mean), "do_convert_rgb": None}, "crop", None, None),
    ({"rescale_factor": 0.00392156862745098, "resample": 3}, "crop", None, None),
    (
        {"image_processor_type": "SiglipImageProcessor"},
        "resize",
        SIGLIP.channel_mean,
        SIGLIP.channel_std,
    ),
]

REFUSED = [
    ({"image_processor_type": "BitImageProcessor"}, "image_processor_type is BitImageProcessor"),
    ({"image_processor_type": ["CLIPImageProcessor"]}, "image_processor_type"),
    ({"do_resize": False}, "do_resize is false"),
    ({"do_rescale": False}, "do_rescale is false"),
    ({"do_normalize": False}, "do_normalize is false"),
    ({"do_normalize": "false"}, "do_normalize is false"),
    ({"do_center_crop": "yes"}, "do_center_crop is yes"),
    ({"resample": 2}, "resample is 2; only 3"),
    ({"resample": "bicubic"}, "resample is bicubic"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784"),
    ({"rescale_factor": "1/255"}, "rescale_factor is 1/255"),
    ({"image_mean": [0.5, 0.5]}, "image_mean is"),
    ({"image_mean": 0.5}, "image_mean is 0.5"),
    ({"image_mean": ["a", "b", "c"]}, "image_mean is"),
    ({"image_std": [0.5, 0.0, 0.5]}, "describes no model: model.vision.channel_std"),
    ({"image_std": [0.5, float("nan"), 0.5]}, "image_std is"),
    ({"size": {"shortest_edge": 32}}, "size.shortest_edge is 32; the tower sees 28"),
    ({"size": {"height": 28, "width": 32}}, "size.width is 32"),
    ({"size": {"longest_edge": 28}}, "size.height is absent"),
    ({"size": {"shortest_edge": 28, "longest_edge": 99}}, "size.longest_edge"),
    ({"size": 30}, "size is 30"),
    ({"size": [28, 28]}, "size is"),
    ({"crop_size": {"height": 24, "width": 24}}, "crop_size.height is 24"),
    ({"do_center_crop": False, "size": {"shortest_edge": 28}}, "not square"),
    ({"image_mode": "stretch"}, "image_mode is stretch"),
    ({"image_mode": {}}, "image_mode is {}"),
    ({"max_tiles": 5}, r"max_tiles \(5\)"),
    ({"image_mode": "tiles", "max_tiles": 0}, "max_tiles is 0"),
    (
        {"image_mode": "tiles", "max_tiles": 101},
        "model.vision.max_tiles is 101; it",
    ),
    ({"image_mode": "tiles", "thumbnail": "no"}, "thumbnail is no"),
    ({"image_mode": "tiles", "tile_newline": "13"}, "tile_newline is 13; a token id or null"),
    ({"crop_pct": 0.9}, r"crop_pct \(0.9\)"),
    ({"image_grid_pinpoints": [[28, 56]]}, "image_grid_pinpoints"),
]


@pytest.fixture(params=["preprocessor_config.json", "processor_config.json"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    def write(values: dict[str, Any]) -> Path:
        nested = request.param == "processor_config.json"
        content = {"image_processor": values} if nested else values
        (tmp_path / request.param).write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize(("values", "mode", "mean", "std"), FOLLOWED, ids=str)
def test_followed(
    values: dict[str, Any],
    mode: str,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    write: Callable[..., Any],
) -> None:
    vision = read_pixels(write(values or {"processor_class": "CLIPProcessor"}), CLIP_TOWER)
    assert (vision.image_mode, vision.channel_mean, vision.channel_std) == (mode, mean, std)


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_refused(values: dict[str, Any], message: str, write: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_pixels(write(values), CLIP_TOWER)
    assert "\n" not in str(caught.value)


def test_how_images_are_cut_is_followed(write: Callable[..., Any]) -> None:
    ours = {"image_processor_type": "VilaImageProcessor", "image_mode": "tiles"}
    cut = replace(CLIP_TOWER, image_mode="tiles", max_tiles=5, thumbnail=False, tile_newline=13)
    directory = write(ours | {"max_tiles": 5, "thumbnail": False, "tile_newline": 13})
    assert read_pixels(directory, CLIP_TOWER) == cut
    assert read_pixels(directory, CLIP_TOWER, "tiles") == cut
    assert read_pixels(directory, CLIP_TOWER, "resize") == replace(CLIP_TOWER, image_mode="resize")
    assert read_pixels(write(ours), CLIP_TOWER) == replace(CLIP_TOWER, image_mode="tiles")


def test_a_mode_that_is_chosen_needs_none_that_is_written(write: Callable[..., Any]) -> None:
    directory = write({"do_center_crop": False, "size": {"shortest_edge": 28}})
    assert read_pixels(directory, CLIP_TOWER, "pad").image_mode == "pad"
    with pytest.raises(CheckpointError, match="size"):
        read_pixels(write({"size": 30}), CLIP_TOWER, "pad")


@pytest.mark.parametrize("tower", [CLIP_TOWER, SIGLIP_TOWER], ids=lambda tower: tower.family)
def test_without_a_file_it_is_as_the_makers_do(tower: VisionConfig, tmp_path: Path) -> None:
    assert read_pixels(tmp_path, tower) == tower


@pytest.mark.parametrize("tower", [CLIP_TOWER, SIGLIP_TOWER], ids=lambda tower: tower.family)
def test_what_is_written_is_read_back(tower: VisionConfig, write: Callable[..., Any]) -> None:
    assert read_pixels(write(preprocessor_json(tower)), tower) == tower


def test_transformers_own_defaults_are_followed(write: Callable[..., Any]) -> None:
    transformers = pytest.importorskip("transformers")
    for name, tower in (("CLIP", CLIP_TOWER), ("Siglip", SIGLIP_TOWER), ("Llava", CLIP_TOWER)):
        processor = getattr(transformers, f"{name}ImageProcessor")
        size = {"shortest_edge": 28} if tower is CLIP_TOWER else SQUARE
        crop = {} if tower is SIGLIP_TOWER else {"crop_size": SQUARE}
        values = json.loads(processor(size=size, **crop).to_json_string())
        assert read_pixels(write(values), tower) == tower

"""What an image processor of Hugging Face makes of an image, both ways."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vila_mc.config.families import VISION_FAMILIES, ImageMode
from vila_mc.config.model import DEFAULT_MAX_TILES, VisionConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import TOWERS
from vila_mc.convert.weights import read_json

_BICUBIC = 3
_BY_255 = 1 / 255
_WITHOUT_TOWER = ("LlavaImageProcessor", "VilaImageProcessor")
_HARMLESS = """
    auto_map crop_size data_format default_to_square device disable_grouping do_convert_rgb
    feature_extractor_type image_processor_type image_seq_length input_data_format processor_class
    return_tensors
""".split()  # noqa: SIM905


def read_pixels(
    directory: Path, vision: VisionConfig, image_mode: ImageMode | None = None
) -> VisionConfig:
    """The tower's config with the pixels that the image processor beside it makes.

    Args:
        directory: may hold a processor_config.json with an image processor in it, as transformers 5
            writes, or a preprocessor_config.json; else pixels are those of the tower's makers.
        vision: the shape of the tower.
        image_mode: how images become square, whatever is written there.

    Raises:
        CheckpointError: it makes pixels that training does not make; the key is named.
    """
    config = _image_processor(directory)
    if config is None:
        return replace(vision, image_mode=image_mode or vision.image_mode)
    family = _family_of(config, vision)
    facts = VISION_FAMILIES[family]
    config = config.with_defaults(
        dict(
            do_resize=True,
            do_rescale=True,
            do_normalize=True,
            do_center_crop=facts.image_mode == "crop",
            resample=_BICUBIC,
            rescale_factor=_BY_255,
            image_mean=facts.channel_mean,
            image_std=facts.channel_std,
            max_tiles=DEFAULT_MAX_TILES,
            thumbnail=True,
        )
    )
    for switch in ("do_resize", "do_rescale", "do_normalize"):
        config.require(switch, True)
    config.require("resample", _BICUBIC)
    if abs(config.number("rescale_factor") - _BY_255) > 1e-9:
        raise config.refusal("rescale_factor", "only 1 / 255 is supported.")
    read_mode = _image_mode(config, vision.image_size, image_mode)
    statistics = {"channel_mean": "image_mean", "channel_std": "image_std"}
    given = {ours: config.numbers(theirs, 3) for ours, theirs in statistics.items()}
    tiles = _read_tiles(config, is_cut=(image_mode or read_mode) == "tiles")
    config.refuse_others(_HARMLESS)
    with config.describing():
        read: dict[str, Any] = {
            name: None if values == getattr(vision.facts(), name) else values
            for name, values in given.items()
        }
        vision = replace(vision, image_mode=image_mode or read_mode, **read, **tiles)
    return vision


def preprocessor_json(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json in CLIP's words; whoever writes it adds the class that reads it."""
    square = {"height": vision.image_size, "width": vision.image_size}
    is_crop = vision.image_mode == "crop"
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": vision.image_size} if is_crop else square,
        "resample": _BICUBIC,
        "do_center_crop": is_crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": _BY_255,
        "do_normalize": True,
        "image_mean": list(vision.resolved_channel_mean()),
        "image_std": list(vision.resolved_channel_std()),
    }


def tiles_json(vision: VisionConfig) -> dict[str, Any]:
    """What our own image processor has to know besides, to cut images; nothing if it does not."""
    if vision.image_mode != "tiles":
        return {}
    return {
        "max_tiles": vision.max_tiles,
        "thumbnail": vision.thumbnail,
        "tile_newline": vision.tile_newline,
    }


def _read_tiles(config: ConfigValues, *, is_cut: bool) -> dict[str, Any]:
    """How our own image processor cuts images; nothing where they are not cut, or it does not.

    Raises:
        CheckpointError: a value is none that training could have.
    """
    if config.get("image_mode") != "tiles":
        return {}
    newline = config.get("tile_newline")
    if newline is not None and (not isinstance(newline, int) or isinstance(newline, bool)):
        raise config.refusal("tile_newline", "a token id or null is needed.")
    tiles = {
        "max_tiles": config.size("max_tiles"),
        "thumbnail": config.flag("thumbnail"),
        "tile_newline": newline,
    }
    return tiles if is_cut else {}


def _image_processor(directory: Path) -> ConfigValues | None:
    """What it says, without what it leaves open; None if there is none. Raises CheckpointError."""
    where, prefix, values = directory / "processor_config.json", "image_processor.", None
    if where.exists():
        part = ConfigValues(read_json(where), where).part("image_processor")
        values = part.values or None
    if values is None:
        where, prefix = directory / "preprocessor_config.json", ""
        values = read_json(where) if where.exists() else None
    if values is None:
        return None
    said = {key: value for key, value in values.items() if value is not None}
    return ConfigValues(said, where, prefix=prefix)


def _family_of(config: ConfigValues, vision: VisionConfig) -> str:
    """Family of the tower that the processor was made for, which decides what it leaves open."""
    key = "image_processor_type"
    if not config.has(key):
        key = "feature_extractor_type"
    kinds = {tower.image_processor: tower.name for tower in TOWERS.values()}
    kinds |= dict.fromkeys(_WITHOUT_TOWER, vision.family)
    given = config.get(key)
    if given is None:
        return vision.family
    name = given.replace("FeatureExtractor", "ImageProcessor") if isinstance(given, str) else ""
    for suffix in ("Fast", "Pil"):
        name = name.removesuffix(suffix)
    if name not in kinds:
        raise config.refusal(key, f"only {', '.join(kinds)} are supported.")
    return kinds[name]


def _image_mode(config: ConfigValues, size: int, chosen: ImageMode | None) -> ImageMode:
    """How the processor makes images square; its sizes must be the tower's."""
    is_cropped, is_padded = config.flag("do_center_crop"), config.flag("do_pad")
    is_square = _is_square(config, "size", size)
    if is_cropped:
        _is_square(config, "crop_size", size)
    config.require("image_mode", "crop", "pad", "resize", "tiles", None)
    said: ImageMode | None = config.get("image_mode")
    if said is not None:
        return said
    if is_padded:
        return "pad"
    if is_cropped and not is_square:
        return "crop"
    if not is_cropped and is_square is False and chosen is None:
        raise config.refusal("size", "without a crop that leaves images that are not square.")
    return "resize"


def _is_square(config: ConfigValues, key: str, size: int) -> bool | None:
    """Whether both sides are given, rather than the shorter; None if that is left open."""
    value = config.get(key)
    if not isinstance(value, dict):
        if value is not None and config.size(key) != size:
            raise config.refusal(key, f"the tower sees {size} pixels.")
        return None
    part = config.part(key)
    names = ("shortest_edge",) if part.has("shortest_edge") else ("height", "width")
    for name in names:
        if part.size(name) != size:
            raise part.refusal(name, f"the tower sees {size} pixels.")
    part.refuse_others()
    return names != ("shortest_edge",)

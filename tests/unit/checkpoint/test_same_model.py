"""Which model section is that of a checkpoint, however it is written, and what is said if not."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.manifest import Manifest, leaves
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.errors import CheckpointError

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def _run(train: dict[str, Any] | None = None, **model: dict[str, Any]) -> RunConfig:
    values = run_to_dict(tiny_run(train=train or {}))
    values["model"]["connector"] = {}
    for section, options in model.items():
        values["model"][section] |= options
    return run_from_dict(values)


def _require_same(theirs: RunConfig, ours: RunConfig) -> None:
    manifest = Manifest(step=1, samples_seen=8, config=theirs, layout=None, versions={})
    manifest.require_same_model(ours, Path("runs/step-00000001"), may_grow=True)


SPELLED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("language", {"head_width": 16}, {"head_width": 8}),
    ("vision", {"channel_mean": CLIP_MEAN}, {"channel_mean": [0.5, 0.5, 0.5]}),
    ("vision", {"channel_std": CLIP_STD}, {"channel_std": [0.5, 0.5, 0.5]}),
]


@pytest.mark.parametrize(("section", "same", "another"), SPELLED, ids=str)
def test_a_model_that_is_spelled_out_is_the_same(
    section: str, same: dict[str, Any], another: dict[str, Any]
) -> None:
    short, spelled = _run(), _run(**{section: same})
    assert short != spelled
    _require_same(short, spelled)
    _require_same(spelled, short)
    ((name, value),) = same.items()
    with pytest.raises(CheckpointError) as refused:
        _require_same(short, _run(**{section: another}))
    said = f"model.{section}.{name}: checkpoint {value}, run {another[name]}."
    assert said in str(refused.value)


def test_every_option_that_stands_for_another_value_is_known() -> None:
    """None of the tile's newline is nothing; the options of connectors are never none."""
    model = ModelConfig()
    open_ones = {
        f"model.{section.name}.{option.name}"
        for section in fields(model)
        if section.name != "connector"
        for option in fields(getattr(model, section.name))
        if option.default is None
    }
    assert open_ones == model.defaults().keys() | {"model.vision.tile_newline"}
    options = leaves(run_to_dict(_run())["model"], "model")
    assert all(options[name] is None for name in model.defaults())


STRETCHED = {"interpolate_positions": True}
POOLING, QFORMER = {"kind": "pooling"}, {"kind": "qformer", "layers": 1}


@pytest.mark.parametrize(
    ("theirs", "ours", "size", "advice"),
    [
        (POOLING, POOLING, 42, "model.connector.side 2"),
        (POOLING | {"side": 4}, POOLING, 42, "model.connector.side 4"),
        (POOLING, POOLING | {"side": 5}, 42, "model.connector.side 2"),
        (QFORMER, QFORMER, 35, "model.connector.queries 16"),
        (QFORMER, QFORMER | {"heads": 2}, 35, "model.connector.queries 16 and .*heads 1"),
        (POOLING | {"side": 4}, POOLING, 14, None),
        (POOLING, QFORMER, 35, None),
    ],
    ids=str,
)
def test_it_is_said_how_a_connector_is_kept_behind_images_of_another_size(
    theirs: dict[str, Any], ours: dict[str, Any], size: int, advice: str | None
) -> None:
    before = _run(connector=theirs)
    vision = {"image_size": size}
    now = _run(STRETCHED, connector=ours, vision=vision)
    kept = "" if advice is None else "; its connector is kept with "
    message = rf"holds another model: model\.connector\..*or another checkpoint{kept}{advice or ''}"
    with pytest.raises(CheckpointError, match=message) as refused:
        _require_same(before, now)
    assert ("kept with" in str(refused.value)) == (advice is not None)
    if advice is not None:
        options = run_to_dict(before)["model"]["connector"]
        _require_same(before, _run(STRETCHED, connector=options, vision=vision))

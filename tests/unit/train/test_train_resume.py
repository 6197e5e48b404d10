"""Which checkpoint a run goes on from, and what it must not have changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from tests.support.tiny_data import write_dataset
from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.checkpoint.manifest import MANIFEST_NAME, DatasetRecord, Manifest
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.lora import LoraConfig
from vila_mc.config.run import RunConfig
from vila_mc.data.indexed.dataset_manifest import read_manifest
from vila_mc.data.indexed.layout import with_suffix
from vila_mc.errors import CheckpointError, DataError
from vila_mc.topology.layout import Layout
from vila_mc.train.resume import (
    blend_since,
    changed_numbers,
    changed_settings,
    checkpoint_to_resume,
    loaded_parts,
    random_parts,
    unread_load,
)

SUFFIXES = (".bin", ".idx", ".manifest.json")


def _run(output: Path, *prefixes: Path, **data: Any) -> RunConfig:
    blend = [{"path": str(prefix)} for prefix in prefixes]
    return tiny_run(data={"blend": blend} | data, train={"output": str(output)})


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))[1]


@pytest.fixture
def output(tmp_path: Path, prefix: Path) -> Path:
    """The output of a run that has read ``prefix``; only the manifest is ever looked at here."""
    directory = tmp_path / "output" / checkpoint_name(2)
    directory.mkdir(parents=True)
    Manifest(
        step=2,
        samples_seen=16,
        config=_run(tmp_path / "output", prefix),
        layout=None,
        versions={},
        datasets=(DatasetRecord.of(read_manifest(prefix)),),
    ).write(directory)
    return directory.parent


def test_what_was_read_is_in_the_manifest(output: Path, prefix: Path) -> None:
    (recorded,) = Manifest.read(output / checkpoint_name(2)).datasets
    assert recorded == DatasetRecord.of(read_manifest(prefix))
    assert recorded.samples == 24


@pytest.mark.parametrize("has_layout", [True, False])
def test_a_manifest_of_format_3_is_read(output: Path, has_layout: bool) -> None:
    path = output / checkpoint_name(2) / MANIFEST_NAME
    values = json.loads(path.read_text())
    values["format_version"], values["run"] = 3, values.pop("config")
    values["run"]["train"]["stage"] = values["run"]["train"].pop("phase")
    values["layout"] = "tensor 1 x pipeline 1 x data 4" if has_layout else ""
    layout = Layout(tensor=1, pipeline=1, data=4) if has_layout else None
    now = replace(Manifest.read(path.parent), layout=layout)
    path.write_text(json.dumps(values))
    assert Manifest.read(path.parent) == now


def test_a_dataset_that_lies_elsewhere_now(output: Path, prefix: Path, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        shutil.copy(with_suffix(prefix, suffix), with_suffix(tmp_path / "moved", suffix))
    assert checkpoint_to_resume(_run(output, tmp_path / "moved")) == output / checkpoint_name(2)


@pytest.mark.parametrize("num_samples", [23, 24])
def test_a_dataset_made_anew_from_other_data(
    output: Path, tmp_path: Path, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.tiny_data._picture", lambda seed: b"other")
    other = write_dataset(tmp_path, num_samples)[1]
    message = (
        rf"pairs holds other samples \({num_samples} samples, .* step 2 was written \(24 samples"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(_run(output, other))
    with pytest.raises(CheckpointError, match=r"data\.blend_may_change, or .* with train\.load"):
        checkpoint_to_resume(_run(output, other))


def test_an_import_is_no_run_to_go_on_with(output: Path, prefix: Path) -> None:
    path = output / checkpoint_name(2)
    replace(Manifest.read(path), step=0).write(path)
    with pytest.raises(CheckpointError, match=r"holds an import, .* in train\.load, and another"):
        checkpoint_to_resume(_run(output, prefix))


def test_a_dataset_that_is_gone(output: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no dataset"):
        checkpoint_to_resume(_run(output, tmp_path / "none"))


def test_another_order(output: Path, prefix: Path) -> None:
    message = r"another data\.seed, data\.held_out or data\.blend"
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(_run(output, prefix, seed=7))
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(_run(output, prefix, prefix))
    now = _run(output, prefix)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(replace(now, data=replace(now.data, held_out=0.1)))


def test_other_parts_learn(output: Path, prefix: Path) -> None:
    now = _run(output, prefix)
    fewer = replace(now, train=replace(now.train, phase="custom", trainable=("connector",)))
    message = r"train\.trainable \[.*language.*\], so it has no optimizer state for \[connector\]"
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(fewer)


def test_other_adapters(output: Path, prefix: Path) -> None:
    now = _run(output, prefix)
    connector = replace(now.train, phase="custom", trainable=("connector",))
    adapted = replace(now, lora=LoraConfig(rank=4), train=connector)
    with pytest.raises(
        CheckpointError, match=r"written without adapters, .* Set lora\.rank to none"
    ):
        checkpoint_to_resume(adapted)
    path = output / checkpoint_name(2)
    replace(Manifest.read(path), config=adapted).write(path)
    same = replace(adapted, lora=LoraConfig(rank=4, alpha=8, dropout=0.1))
    assert checkpoint_to_resume(same) == path
    assert "lora.dropout 0.0 -> 0.1" in changed_settings(Manifest.read(path), same)
    for lora, difference in (
        (LoraConfig(rank=8), r"lora\.rank: checkpoint 4, run 8; lora\.alpha: checkpoint 8, run 16"),
        (LoraConfig(rank=4, alpha=4), r"lora\.alpha: checkpoint 8, run 4"),
        (LoraConfig(rank=4, targets=("q_proj",)), r"lora\.targets: .* run \[q_proj\]"),
        (LoraConfig(), r"lora\.rank: checkpoint 4, run none"),
    ):
        with pytest.raises(CheckpointError, match=f"holds adapters that this .* {difference}"):
            checkpoint_to_resume(replace(adapted, lora=lora))


def test_a_newest_checkpoint_without_manifest_is_no_reason_to_go_further_back(
    output: Path, prefix: Path
) -> None:
    newest = output / checkpoint_name(4)
    newest.mkdir()
    with pytest.raises(CheckpointError, match=r"step-00000004 is damaged.*from step-00000002"):
        checkpoint_to_resume(_run(output, prefix))
    newest.rename(output / "aside")
    assert checkpoint_to_resume(_run(output, prefix)).name == checkpoint_name(2)


def test_another_blend_begins_where_the_checkpoint_stands(output: Path, prefix: Path) -> None:
    path = output / checkpoint_name(2)
    other = _run(output, prefix, prefix, blend_may_change=True)
    assert checkpoint_to_resume(other) == path
    manifest = Manifest.read(path)
    assert blend_since(manifest, other) == manifest.samples_seen == 16
    later = replace(manifest, config=other, datasets=manifest.datasets * 2, blend_since=16)
    assert blend_since(replace(later, samples_seen=40), other) == 16
    same = _run(output, prefix, blend_may_change=True)
    assert blend_since(manifest, same) == 0
    assert blend_since(manifest, replace(same, data=replace(same.data, seed=7))) == 16


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (dict(), "random weights (train.seed 42) for vision, connector, language; read from no"),
        (dict(load="run", load_parts=["vision", "language"]), "for connector; read from run"),
        (dict(load="run"), None),
    ],
)
def test_weights_that_nothing_gives_are_said(train: dict[str, Any], said: str | None) -> None:
    line = random_parts(tiny_run(train=train))
    assert line is None if said is None else said in line


@pytest.mark.parametrize(
    ("step", "parts", "said"),
    [
        (
            700,
            ["vision", "language"],
            "vision, language from runs/align, after step 700 of pretrain",
        ),
        (0, ["language"], "language from runs/align, as it was imported; optimizer, schedule"),
    ],
)
def test_where_weights_come_from_is_said(step: int, parts: list[str], said: str) -> None:
    manifest = Manifest(step=step, samples_seen=0, config=tiny_run(), layout=None, versions={})
    config = tiny_run(train={"load": "runs", "load_parts": parts})
    assert loaded_parts(manifest, Path("runs/align"), config).startswith(said)


FP8 = {"precision": "bf16", "fp8": {"recipe": "current"}}
DELAYED = {"precision": "bf16", "fp8": {"recipe": "delayed", "amax_history": 16}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"layers": "transformer_engine"}, ""),
        ({"vision_layers": "torch"}, {"layers": "torch"}, ""),
        ({}, {"precision": "bf16"}, "train.precision fp32 -> bf16"),
        ({"precision": "bf16"}, FP8, "train.fp8.recipe none -> current"),
        ({}, FP8, "train.precision fp32 -> bf16, train.fp8.recipe none -> current"),
        (FP8, {"precision": "bf16"}, "train.fp8.recipe current -> none"),
        (DELAYED, FP8, "train.fp8.recipe delayed -> current"),
        (FP8, FP8 | {"fp8": {"recipe": "current", "emulation": True}}, ""),
        (
            FP8,
            FP8 | {"fp8": {"recipe": "current", "format": "e4m3", "parts": ["vision"]}},
            "train.fp8.format hybrid -> e4m3, train.fp8.parts [language] -> [vision]",
        ),
        (
            DELAYED,
            DELAYED | {"fp8": DELAYED["fp8"] | {"amax_history": 4, "margin": 1}},  # type: ignore[operator]
            "train.fp8.amax_history 16 -> 4, train.fp8.margin 0 -> 1",
        ),
    ],
    ids=str,
)
def test_another_way_of_rounding_is_said_in_one_line(
    before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    manifest = Manifest(
        step=3, samples_seen=24, config=tiny_run(train=before), layout=None, versions={}
    )
    config = tiny_run(train=now)
    line = f"from here on: {said}" if said else ""
    assert changed_numbers(manifest, config) == line
    assert changed_settings(manifest, config) == []
    directory = Path("runs/align")
    assert loaded_parts(manifest, directory, config).endswith(f"anew{said and f'; {line}'}")
    of_an_import = replace(manifest, step=0)
    assert loaded_parts(of_an_import, directory, config).endswith("anew")


def test_weights_go_on_with_images_in_tiles_and_that_is_said() -> None:
    """As InternVL and NVILA train: squares first. A run that resumes keeps what it has."""
    vision = dict(image_size=28, patch_size=7, width=32, layers=3, heads=4, ffn=64)
    tiles = vision | dict(image_mode="tiles", max_tiles=2)
    before = tiny_run(data={"sequence_length": 32})
    squares = Manifest(step=7, samples_seen=0, config=before, layout=None, versions={})
    cut = tiny_run(model={"vision": tiles}, train={"load": "runs"})
    squares.require_same_model(cut, Path("runs"), may_grow=True)
    said = "; images, made square by crop until then, are now cut into at most 2 tiles and a thumb"
    assert said in loaded_parts(squares, Path("runs"), cut)
    assert "images" not in loaded_parts(squares, Path("runs"), before)
    with pytest.raises(CheckpointError, match="image_mode: checkpoint crop, run tiles"):
        squares.require_same_model(cut, Path("runs"))
    padded = tiny_run(model={"vision": vision | dict(image_mode="pad")})
    with pytest.raises(CheckpointError, match="image_mode: checkpoint crop, run pad"):
        squares.require_same_model(padded, Path("runs"), may_grow=True)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (
            {"connector": {"kind": "linear"}},
            "train.load_parts [vision, language] to start connector from train.seed, or another",
        ),
        (
            {"vision": {"width": 64}},
            "train.load_parts [language] to start vision, connector from train.seed, or another",
        ),
        (
            {"vision": {"layers": 4}},
            "train.load_parts [connector, language] to start vision from train.seed, or another",
        ),
        (
            {"vision": {"width": 64}, "language": {"ffn": 64}},
            "trained with, or another checkpoint.",
        ),
    ],
)
def test_what_can_be_loaded_of_another_model_is_said(
    output: Path, prefix: Path, model: dict[str, Any], hint: str
) -> None:
    directory, now = output / checkpoint_name(2), run_to_dict(_run(output, prefix))
    for section, values in model.items():
        now["model"][section] |= values
    config, manifest = run_from_dict(now), Manifest.read(directory)
    with pytest.raises(CheckpointError) as refused:
        manifest.require_same_model(config, directory, may_grow=True)
    assert hint in str(refused.value)
    with pytest.raises(CheckpointError) as refused:
        manifest.require_same_model(config, directory)
    assert "load_parts" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "now", "is_told"),
    [
        (None, None, False),
        ("a", "a", False),
        ("a", None, False),
        ("a", "b", True),
        (None, "b", True),
    ],
)
def test_weights_that_a_resumed_run_does_not_read_are_said(
    before: str | None, now: str | None, is_told: bool
) -> None:
    runs = [tiny_run(train={"load": path} if path else {}) for path in (before, now)]
    manifest = Manifest(step=1, samples_seen=8, config=runs[0], layout=None, versions={})
    line = unread_load(manifest, runs[1])
    assert line is None if not is_told else "train.load b is not read" in line

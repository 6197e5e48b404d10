"""A manifest that was damaged or written by a stranger is refused in one line."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest
from vila_mc.checkpoint.safe_index import INDEX_NAME, read_index
from vila_mc.errors import CheckpointError
from vila_mc.topology.layout import Layout

MANIFEST = Manifest(
    step=3,
    samples_seen=24,
    config=tiny_run(),
    layout=Layout(tensor=2, pipeline=2, data=1, virtual=2),
    versions={"torch": "2.14"},
    layers={"vision": "torch", "language": "transformer_engine"},
    files={"a": FileRecord(1, "00")},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


def test_what_computed_the_weights_is_said() -> None:
    assert MANIFEST.computed_in() == (
        "fp32, no FP8; layers: vision torch, language transformer_engine"
    )
    fp8 = {"recipe": "current", "parts": ["vision", "language"], "emulation": True}
    config = tiny_run(train={"precision": "bf16", "fp8": fp8})
    assert replace(MANIFEST, config=config, layers={}).computed_in() == (
        "bf16, FP8 current (hybrid) in vision and language, emulated"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format_version", 2, "has format 2; this version reads"),
        ("format_version", {"a": 1}, "has format"),
        ("format_version", None, "has format None"),
        ("step", -1, "step must be at least 0"),
        ("step", "3", "step must be a whole number"),
        ("step", 1.5, "step must be a whole number"),
        ("samples_seen", True, "samples_seen must be a whole number"),
        ("samples_seen", None, "samples_seen must be a whole number"),
        ("layout", "tensor 2", "layout"),
        ("layout", {"tensor": 2}, "layout"),
        ("versions", ["2.14"], "versions must be an object"),
        ("versions", {"torch": 2}, "versions.torch must be a text"),
        ("layers", {"language": "wood"}, "layers.language"),
        ("layers", {"connector": 3}, "layers.connector"),
        ("datasets", [{"samples": 1}], "datasets.0.sha256"),
        ("datasets", {}, "datasets must be a list"),
        ("files", {"a": 1}, "files.a must be an object"),
        ("files", {"../a": {"num_bytes": 1, "sha256": ""}}, r"'\.\./a', outside its directory"),
        ("files", {"/etc/passwd": {"num_bytes": 1, "sha256": ""}}, "outside its directory"),
        ("config", None, "config must be an object"),
        ("config", {"model": {"vision": []}}, r"config\.model\.vision"),
        ("config", {"model": {"language": {"heads": 7}}}, "not a multiple"),
        ("surplus", 1, "surplus is unknown"),
    ],
)
def test_a_value_of_another_kind(name: str, value: Any, message: str, tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=message) as refused:
        Manifest.read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("name", ["config", "run", "layout", "step", "files"])
def test_a_value_that_is_missing(name: str, version: int, tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    values = json.loads(path.read_text())
    if version == 3:
        values |= {"format_version": 3, "run": values.pop("config"), "layout": "data 1"}
        values["run"]["train"]["stage"] = values["run"]["train"].pop("phase")
        Manifest.read(tmp_path)
    if name in values and name != "files":  # a checkpoint may list none
        del values[name]
        path.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="damaged"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"step"', b"\xff\xfe", b"[" * 100_000, b"null"]
)
def test_what_is_no_object(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="older step"):
        Manifest.read(tmp_path)


def test_a_manifest_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / MANIFEST_NAME, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="is larger than 64 MiB"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["planted", "__eq__"])
def test_an_index_changes_no_class(name: str, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import metadata

    # A class, and a state to set on it: what pickle writes for an object with slots.
    code = (
        b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n"
        + b"(N}"
        + pickle.dumps(name, 0)[:-1]
        + b"I1\nstb."
    )
    before = dict(vars(metadata.Metadata))
    pickle.loads(code)
    assert vars(metadata.Metadata)[name] == 1, "the attack does not work"
    if name in before:
        setattr(metadata.Metadata, name, before[name])
    else:
        delattr(metadata.Metadata, name)
    (tmp_path / INDEX_NAME).write_bytes(code)
    with pytest.raises(
        CheckpointError, match=r"\.metadata cannot be trusted.*changes the class Metadata"
    ):
        read_index(tmp_path)
    assert dict(vars(metadata.Metadata)) == before

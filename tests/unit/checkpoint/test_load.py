"""What is loaded is what was saved; what cannot be is refused by name."""

import dataclasses
import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from tests.support.tiny import tiny_microbatches
from tests.unit.checkpoint.conftest import save, trainer
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import FileRecord, Manifest
from vila_mc.checkpoint.safe_index import INDEX_NAME, read_index
from vila_mc.errors import CheckpointError
from vila_mc.model.vila_model import VilaModel

SHARD = "__0_0.distcp"


def _resign(checkpoint: Path) -> None:
    """Make the manifest agree with the files, as someone who means harm would."""
    manifest = Manifest.read(checkpoint)
    files = {name: FileRecord.of(checkpoint / name) for name in manifest.files}
    dataclasses.replace(manifest, files=files).write(checkpoint)


def _weights(stage: VilaModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in stage.named_parameters()}


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_run_goes_on_as_if_it_had_not_stopped(checkpoint: Path) -> None:
    with trainer() as unbroken:
        batches = tiny_microbatches(unbroken.config, 0, 1)
        expected = [unbroken.step(batches) for _ in range(3)]
        generators = (random.random(), np.random.random(), torch.rand(3).tolist())
    with trainer() as resumed:
        assert resumed.resume(checkpoint).step == 1
        assert [resumed.step(batches) for _ in range(2)] == expected[1:]
        assert (random.random(), np.random.random(), torch.rand(3).tolist()) == generators


def test_random_generators_are_restored(checkpoint: Path) -> None:
    with trainer() as first:
        first.resume(checkpoint)
        expected = (random.random(), np.random.random(), torch.rand(3).tolist())
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        first.resume(checkpoint)
        assert (random.random(), np.random.random(), torch.rand(3).tolist()) == expected


def test_settings_of_the_run_apply_and_not_those_of_the_checkpoint(checkpoint: Path) -> None:
    with trainer(optimizer={"lr": 5e-4, "decay": "constant"}, train={"steps": 50}) as resumed:
        resumed.resume(checkpoint)
        (group, *_) = resumed.optimizer.param_groups
        assert group["max_lr"] == 5e-4
        assert group["step"] == 1
        # Warm-up takes a fifth of 50 steps; the next step is the second.
        result = resumed.step(tiny_microbatches(resumed.config, 0, 1))
        assert result.learning_rate == pytest.approx(5e-4 * 2 / 10)


@pytest.mark.parametrize("name", [SHARD, INDEX_NAME, "metadata.json"])
def test_flipped_bytes_are_found_and_the_file_is_named(name: str, checkpoint: Path) -> None:
    path = checkpoint / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with (
        trainer() as loading,
        pytest.raises(CheckpointError, match=rf"{name} has other bytes.*older step-\*"),
    ):
        loading.resume(checkpoint)


def test_missing_surplus_and_cut_files_are_listed_together(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()
    (checkpoint / "common.pt").write_bytes(b"surplus")
    with open(checkpoint / INDEX_NAME, "ab") as file:
        file.write(b"0")
    with trainer() as loading, pytest.raises(CheckpointError) as refused:
        loading.resume(checkpoint)
    for part in (f"{SHARD} is missing", "common.pt does not belong", f"{INDEX_NAME} has another"):
        assert part in str(refused.value)


def test_missing_surplus_and_differently_shaped_weights_are_listed(checkpoint: Path) -> None:
    index = read_index(checkpoint)
    entries = index.state_dict_metadata
    bias, norm = "connector.fc1.bias", "connector.norm.weight"
    for position, name in enumerate((bias, norm)):
        entries[f"connector.stranger{position}"] = entries.pop(name)
    shorter = entries["connector.fc2.bias"]
    shorter.size = torch.Size([63])
    shorter.chunks = [ChunkStorageMetadata(torch.Size([0]), shorter.size)]
    (checkpoint / INDEX_NAME).write_bytes(pickle.dumps(index))
    _resign(checkpoint)
    with trainer() as loading, pytest.raises(CheckpointError) as refused:
        load_weights(checkpoint, loading.stages)
    message = str(refused.value)
    assert f"missing: {bias}, {norm};" in message
    assert "surplus: connector.stranger0, connector.stranger1;" in message
    assert "of another shape: connector.fc2.bias (checkpoint 63, run 64)" in message
    assert "\n" not in message


@pytest.mark.parametrize("parts", [("vision",), ("language",), ("connector",)])
def test_parts_are_loaded_by_name(parts: tuple[str], checkpoint: Path) -> None:
    with trainer(train={"seed": 7}) as loading:
        (stage,) = loading.stages
        fresh = _weights(stage)
        load_weights(checkpoint, loading.stages, parts)
        loaded = _weights(stage)
    with trainer() as whole:
        load_weights(checkpoint, whole.stages)
        saved = _weights(whole.stages[0])
    for name, weight in loaded.items():
        expected = saved if name.startswith(parts) else fresh
        assert torch.equal(weight, expected[name]), name


def test_parts_come_from_a_model_that_differs_elsewhere(checkpoint: Path) -> None:
    narrow = dict(layers=2, width=32, ffn=64, heads=4, kv_heads=2, vocab_size=131, max_positions=64)
    with trainer(model={"language": narrow}) as loading:
        load_weights(checkpoint, loading.stages, ("vision",))
        for part in ("language", "connector"):
            with pytest.raises(CheckpointError, match=r"language\.width: checkpoint 64, run 32"):
                load_weights(checkpoint, loading.stages, (part,))


def test_a_malicious_index_is_not_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = pickle.dumps(Harmful(marker))
    pickle.loads(pickle.dumps(Harmful(tmp_path / "it works")))
    assert (tmp_path / "it works").exists()
    (checkpoint / INDEX_NAME).write_bytes(payload)
    _resign(checkpoint)
    with trainer() as loading, pytest.raises(CheckpointError, match=r"cannot be trusted.*mkdir"):
        loading.resume(checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["common_state/shard_0_1", "random/shard_0_1"])
def test_a_malicious_object_among_the_shards_is_not_unpickled(
    key: str, checkpoint: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save([Harmful(marker)], buffer)
    index = read_index(checkpoint)
    (place,) = (p for name, p in index.storage_data.items() if name.fqn == key)
    with open(checkpoint / SHARD, "ab") as shards:
        place.offset, place.length = shards.tell(), len(buffer.getvalue())
        shards.write(buffer.getvalue())
    (checkpoint / INDEX_NAME).write_bytes(pickle.dumps(index))
    _resign(checkpoint)
    with trainer() as loading, pytest.raises(CheckpointError, match="cannot be loaded"):
        loading.resume(checkpoint)
    assert not marker.exists()


def test_a_checkpoint_before_the_first_step_has_moments(tmp_path: Path) -> None:
    with trainer(train={"output": str(tmp_path)}) as made:
        save(made, step=0)
    with trainer() as resumed:
        assert resumed.resume(tmp_path).step == 0

"""Weights one at a time: written by one process, read from what any process wrote."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.support.tiny import tiny_run
from vila_mc.checkpoint.lazy import lazily
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest
from vila_mc.checkpoint.safe_index import INDEX_NAME
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.checkpoint.whole import weightless_model, whole_model
from vila_mc.config.run import RunConfig
from vila_mc.errors import CheckpointError
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.topology.shapes import model_parameters

Written = tuple[Path, dict[str, torch.Tensor]]


def _random_state(config: RunConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        each.name: torch.randn(each.shape, generator=generator)
        for each in model_parameters(config.model)
    }


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_run(train={"output": str(tmp_path / "out")})


@pytest.fixture
def written(config: RunConfig) -> Written:
    state = _random_state(config)
    return write_weights_checkpoint(config, lazily(state), "the test"), state


def test_a_model_without_weights_takes_no_memory(config: RunConfig) -> None:
    with weightless_model(config) as model:
        assert all(weight.is_meta for weight in model.parameters())
        assert not model.language.rotary_pos_emb.inv_freq.is_meta


def test_what_was_written_is_read_back_and_loaded(config: RunConfig, written: Written) -> None:
    directory, state = written
    tensors = open_checkpoint(directory, config.model)
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensors[name].read(), tensor), name
        assert tensors[name].num_bytes() == 4 * tensor.numel()
    with whole_model(directory) as (model, manifest):
        assert manifest.step == 0
        for name, weight in model.named_parameters():
            assert torch.equal(weight, state[name]), name


def test_a_bf16_run_starts_from_fp32_weights(written: Written) -> None:
    directory, state = written
    bf16 = tiny_run(train={"precision": "bf16"})
    with distributed(bf16.parallel, seed=1) as ranks:
        (stage,) = build_stages(bf16, ranks)
        load_weights(directory, [stage])
        for name, weight in stage.named_parameters():
            assert torch.equal(weight, state[name].bfloat16()), name


def test_changed_bytes_are_found(config: RunConfig, written: Written) -> None:
    directory, _ = written
    shard = directory / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    tensors = open_checkpoint(directory, config.model)
    first = next(iter(tensors))
    start = data.index(tensors[first].read().numpy().tobytes())
    data[start + 5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the tensor that was written"):
        open_checkpoint(directory, config.model)[first].read()
    shard.write_bytes(data[: start + 5])
    with pytest.raises(CheckpointError, match=r"is damaged|cannot be read"):
        open_checkpoint(directory, config.model)[first].read()
    shard.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(directory, config.model)[first].read()


def test_an_index_runs_nothing_and_names_no_other_place(
    config: RunConfig, written: Written, tmp_path: Path
) -> None:
    directory, _ = written
    index = directory / INDEX_NAME
    content = pickle.loads(index.read_bytes())
    for place in content.storage_data.values():
        place.relative_path = "../../secret"
    index.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="names a place outside its files"):
        open_checkpoint(directory, config.model)
    index.write_bytes(pickle.dumps(json.JSONDecodeError))
    with pytest.raises(CheckpointError, match="cannot be trusted"):
        open_checkpoint(directory, config.model)


def test_a_checkpoint_of_another_model_is_refused(written: Written) -> None:
    directory, _ = written
    other = tiny_run(
        model={
            "language": dict(
                layers=5, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=131, max_positions=64
            )
        }
    )
    with pytest.raises(CheckpointError, match="does not hold"):
        open_checkpoint(directory, other.model)


def test_nothing_is_left_of_a_checkpoint_that_failed(config: RunConfig) -> None:
    state = _random_state(config)
    state["language.decoder.final_layernorm.weight"][1] = torch.nan
    with pytest.raises(CheckpointError, match=r"the test: .*final_layernorm.weight holds NaN"):
        write_weights_checkpoint(config, lazily(state), "the test")
    assert not list(config.train.output.iterdir())


def test_a_checkpoint_is_not_written_over_nor_beside(config: RunConfig, written: Written) -> None:
    directory, state = written
    for name in ("step-00000000", "step-00000007"):
        directory = directory.rename(directory.with_name(name))
        with pytest.raises(CheckpointError, match=f"{name} exists, and of several"):
            write_weights_checkpoint(config, lazily(state), "the test")


def test_a_manifest_from_before_an_option_existed_is_read(
    config: RunConfig, written: Written
) -> None:
    directory, _ = written
    where = directory / MANIFEST_NAME
    values = json.loads(where.read_text())
    del values["config"]["model"]["language"]["head_width"]
    where.write_text(json.dumps(values))
    assert Manifest.read(directory).config == config

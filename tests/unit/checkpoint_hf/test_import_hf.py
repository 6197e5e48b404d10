"""Published weights become the training state they stand for; what we cannot compute is refused."""

import json
import shutil

import pytest
import torch
from independent_vila import PADDED, build, tiny_model
from transformers import CLIPConfig, CLIPModel

from vila_mc.checkpoint.hf.import_hf import read_export, read_hf_clip, read_hf_llama
from vila_mc.errors import CheckpointError


@pytest.fixture(scope="module")
def vila():
    return build(tiny_model())


@pytest.fixture(scope="module")
def saved(vila, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    vila.llama.save_pretrained(folder / "llama", max_shard_size="60KB")
    vila.clip.save_pretrained(folder / "clip")
    return folder


@pytest.fixture
def copies(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copies")
    return tmp_path / "copies"


def _edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_llama(vila, saved):
    config, state = read_hf_llama(saved / "llama", PADDED)
    assert config == vila.model.language
    expected = {k: v for k, v in vila.canonical().items() if k.startswith("language.")}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = slice(401 if tensor.shape[0] == PADDED else None)
        assert torch.equal(state[name][rows], tensor[rows]), name


def test_clip_vision_model(vila, saved):
    config, state = read_hf_clip(saved / "clip")
    assert config == vila.model.vision
    expected = {k: v for k, v in vila.canonical().items() if k.startswith("vision.")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_whole_clip_with_its_text_side(vila, tmp_path):
    config = CLIPConfig(
        vision_config=vila.clip.config.to_dict(),
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "vocab_size": 32},
        projection_dim=8,
    )  # fmt: skip
    clip = CLIPModel(config)
    clip.vision_model.load_state_dict(vila.clip.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    config, state = read_hf_clip(tmp_path / "clip", "resize")
    assert config.image_mode == "resize"
    expected = vila.canonical()
    assert len(state) == sum(name.startswith("vision.") for name in expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_llama_2_era_config_is_understood(copies):
    path = copies / "llama" / "config.json"
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "head_dim", "num_key_value_heads"):
        config.pop(key, None)
    path.write_text(json.dumps(config | {"rope_theta": 5000.0, "rope_scaling": None}))
    with pytest.raises(CheckpointError, match="mis-shaped"):  # this one has grouped queries
        read_hf_llama(copies / "llama")
    _edit_config(copies / "llama", num_key_value_heads=2)
    assert read_hf_llama(copies / "llama")[0].rope_theta == 5000.0


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("llama", "model_type", "mistral"),
        ("llama", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("llama", "tie_word_embeddings", True),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "head_dim", 24),
        ("llama", "hidden_size", None),
        ("llama", "quantization_config", {"bits": 4}),
        ("clip", "model_type", "siglip_vision_model"),
        ("clip", "hidden_act", "gelu"),
        ("clip", "layer_norm_eps", 1e-6),
        ("clip", "patch_size", [7, 14]),
    ],
)
def test_unsupported_configs_are_refused_by_key(part, key, value, copies):
    _edit_config(copies / part, **{key: value})
    read = {"llama": read_hf_llama, "clip": read_hf_clip}[part]
    with pytest.raises(CheckpointError, match=key):
        read(copies / part)


def test_scaled_rope_of_new_configs_is_refused(copies):
    _edit_config(copies / "llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    with pytest.raises(CheckpointError, match="rope_type is yarn"):
        read_hf_llama(copies / "llama")


def test_pickles_are_never_read(copies):
    (copies / "clip" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        read_hf_clip(copies / "clip")
    (copies / "clip" / "pytorch_model.bin").write_bytes(b"boom")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        read_hf_clip(copies / "clip")


def test_damage_gives_one_clear_line(copies):
    weights = copies / "clip" / "model.safetensors"
    data = weights.read_bytes()
    for broken in (b"", data[:5], data[: len(data) // 2], b"\xff" * 8 + data[8:]):
        weights.write_bytes(broken)
        with pytest.raises(CheckpointError, match="damaged or cut short") as caught:
            read_hf_clip(copies / "clip")
        assert "\n" not in str(caught.value)
    shard = sorted((copies / "llama").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match="which the index names"):
        read_hf_llama(copies / "llama")
    (copies / "llama" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_hf_llama(copies / "llama")


def test_directories_that_are_not_models_are_refused(copies, tmp_path):
    with pytest.raises(CheckpointError, match="there is no"):
        read_hf_llama(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no"):
        read_export(copies / "llama")

"""Published weights become the training state they stand for; what we cannot compute is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from tests.unit.convert.independent_vila import PADDED, IndependentVila, build, tiny_model
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.read_parts import read_language, read_vision
from vila_mc.errors import CheckpointError


@pytest.fixture(scope="module")
def vila() -> IndependentVila:
    return build(tiny_model())


@pytest.fixture(scope="module")
def saved(vila: IndependentVila, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    vila.llama.save_pretrained(folder / "llama", max_shard_size="60KB")
    vila.clip.save_pretrained(folder / "clip")
    return folder


@pytest.fixture
def copies(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "copies")
    return tmp_path / "copies"


def _edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_llama(vila: IndependentVila, saved: Path) -> None:
    config, state = read_language(saved / "llama")
    assert config == vila.model.language
    expected = {k: v for k, v in vila.canonical().items() if k.startswith("language.")}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = slice(401 if tensor.shape[0] == PADDED else None)
        assert torch.equal(state[name].read()[rows], tensor[rows]), name


def test_clip_vision_model(vila: IndependentVila, saved: Path) -> None:
    config, state = read_vision(saved / "clip")
    assert config == vila.model.vision
    expected = {k: v for k, v in vila.canonical().items() if k.startswith("vision.")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name].read(), tensor) for name, tensor in expected.items())


def test_whole_clip_with_its_text_side(vila: IndependentVila, tmp_path: Path) -> None:
    config = CLIPConfig(
        vision_config=vila.clip.config.to_dict(),
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "vocab_size": 32},
        projection_dim=8,
    )  # fmt: skip
    clip = CLIPModel(config)
    clip.vision_model.load_state_dict(vila.clip.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    config, state = read_vision(tmp_path / "clip", "resize")
    assert config.image_mode == "resize"
    expected = vila.canonical()
    assert len(state) == sum(name.startswith("vision.") for name in expected)
    assert all(torch.equal(tensor.read(), expected[name]) for name, tensor in state.items())


def test_llama_2_era_config_is_understood(copies: Path) -> None:
    path = copies / "llama" / "config.json"
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "head_dim", "num_key_value_heads"):
        config.pop(key, None)
    path.write_text(json.dumps(config | {"rope_theta": 5000.0, "rope_scaling": None}))
    with pytest.raises(CheckpointError, match="mis-shaped"):  # this one has grouped queries
        read_language(copies / "llama")
    _edit_config(copies / "llama", num_key_value_heads=2)
    assert read_language(copies / "llama")[0].rope_theta == 5000.0


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("llama", "model_type", "gemma"),
        ("llama", "use_sliding_window", True),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "head_dim", "wide"),
        ("llama", "hidden_size", None),
        ("llama", "quantization_config", {"bits": 4}),
        ("clip", "model_type", "dinov2"),
        ("clip", "hidden_act", "gelu"),
        ("clip", "layer_norm_eps", 1e-6),
        ("clip", "patch_size", [7, 14]),
    ],
)
def test_unsupported_configs_are_refused_by_key(
    part: str, key: str, value: Any, copies: Path
) -> None:
    _edit_config(copies / part, **{key: value})
    read = {"llama": read_language, "clip": read_vision}[part]
    with pytest.raises(CheckpointError, match=key):
        read(copies / part)


def test_scaled_rope_of_new_configs_is_refused(copies: Path) -> None:
    _edit_config(copies / "llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    with pytest.raises(CheckpointError, match="rope_type is yarn"):
        read_language(copies / "llama")


def test_pickles_are_read_only_where_they_are_trusted(vila: IndependentVila, copies: Path) -> None:
    (copies / "clip" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        read_vision(copies / "clip")
    pickle = copies / "clip" / "pytorch_model.bin"
    torch.save(vila.clip.state_dict(), pickle)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        read_vision(copies / "clip")
    _, state = read_vision(copies / "clip", trust_pickle=True)
    expected = vila.canonical()
    assert all(torch.equal(tensor.read(), expected[name]) for name, tensor in state.items())


class _Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("payload", ["evil", b"", b"boom"])
def test_even_a_trusted_pickle_runs_nothing(payload: bytes | str, copies: Path) -> None:
    (copies / "clip" / "model.safetensors").unlink()
    pickle, trace = copies / "clip" / "pytorch_model.bin", copies / "trace"
    if payload == "evil":
        torch.save({"embeddings": _Evil(trace)}, pickle)
    else:
        pickle.write_bytes(payload)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged, .* Use safetensors"):
        read_vision(copies / "clip", trust_pickle=True)
    assert not trace.exists()


def test_old_files_hold_a_tied_embedding_twice(
    vila: IndependentVila, copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit_config(copies / "llama", tie_word_embeddings=True)
    config, state = read_language(copies / "llama")
    assert not config.tied_embeddings
    head = vila.llama.lm_head.weight
    assert torch.equal(state["language.output_layer.weight"].read()[:401], head)
    assert "lm_head.weight is not model.embed_tokens.weight" in capsys.readouterr().out
    equal = dict(vila.llama.state_dict())
    equal["lm_head.weight"] = equal["model.embed_tokens.weight"].clone()
    _save_as_one(copies / "llama", equal)
    config, state = read_language(copies / "llama")
    assert config.tied_embeddings
    assert "language.output_layer.weight" not in state
    assert not capsys.readouterr().out


def _save_as_one(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_contradict_each_other_are_refused(
    vila: IndependentVila, copies: Path
) -> None:
    directory = copies / "llama"
    index = directory / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    files = list(good["weight_map"].values())
    first = max(files, key=files.count)  # holds several tensors
    second = next(file for file in files if file != first)
    name = next(n for n, file in good["weight_map"].items() if file == first)

    single = directory / "model.safetensors"
    save_file(dict(vila.llama.state_dict()), single, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"beside .*index\.json, which names other files"):
        read_language(directory)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(good["weight_map"], single.name)}))
    read_language(directory)  # an index of the one file
    single.unlink()

    index.write_text(json.dumps({"weight_map": good["weight_map"] | {name: second}}))
    with pytest.raises(CheckpointError, match=rf"lacks|holds {name}, which the index puts else"):
        read_language(directory)
    del good["weight_map"][name]
    index.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match=rf"{first} holds {name}, which the index puts else"):
        read_language(directory)
    twice = load_file(directory / second) | {name: load_file(directory / first)[name]}
    save_file(twice, directory / second, metadata={"format": "pt"})
    good["weight_map"][name] = first
    index.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match=rf"{second} holds {name}"):
        read_language(directory)


def test_an_adapter_that_is_not_merged_is_refused(copies: Path) -> None:
    (copies / "llama" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter"):
        read_language(copies / "llama")


def test_a_short_sliding_window_is_the_longest_sequence(copies: Path) -> None:
    _edit_config(copies / "llama", model_type="mistral", sliding_window=64)
    assert read_language(copies / "llama")[0].max_positions == 64
    _edit_config(copies / "llama", sliding_window=None)
    assert read_language(copies / "llama")[0].max_positions == 256


def test_a_combination_is_whole_and_follows_its_seed(vila: IndependentVila, saved: Path) -> None:
    first, again, other = (
        combine_parts(saved / "llama", saved / "clip", "mlp_downsample", seed=seed)
        for seed in (1, 1, 2)
    )
    expected = vila.canonical()
    assert first.tensors.keys() == expected.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor.read(), again.tensors[name].read())
        assert tensor.read().abs().max() > 0 or name.endswith("norm.bias")
    weight = "connector.fc1.weight"
    assert not torch.equal(first.tensors[weight].read(), other.tensors[weight].read())


def test_nan_is_found_when_the_tensor_is_read(copies: Path) -> None:
    state = load_file(copies / "clip" / "model.safetensors")
    name = next(name for name in state if name.endswith("layers.1.mlp.fc1.bias"))
    state[name][0] = torch.nan
    save_file(state, copies / "clip" / "model.safetensors", metadata={"format": "pt"})
    _, tensors = read_vision(copies / "clip")
    with pytest.raises(CheckpointError, match=r"mlp\.fc1\.bias holds NaN"):
        tensors["vision.decoder.layers.1.mlp.linear_fc1.bias"].read()


def test_damage_gives_one_clear_line(copies: Path) -> None:
    weights = copies / "clip" / "model.safetensors"
    data = weights.read_bytes()
    for broken in (b"", data[:5], data[: len(data) // 2], b"\xff" * 8 + data[8:]):
        weights.write_bytes(broken)
        with pytest.raises(CheckpointError, match="damaged or cut short") as caught:
            read_vision(copies / "clip")
        assert "\n" not in str(caught.value)
    shard = sorted((copies / "llama").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match="which the index names"):
        read_language(copies / "llama")
    index = copies / "llama" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for bad, said in (
        ({"weight_map": {"x": "../../etc/passwd"}}, "outside its directory"),
        ({"weight_map": {"x": ""}}, "outside its directory"),
        ({"weight_map": {"x": ".."}}, "outside its directory"),
        ({"weight_map": {"x": "a\0b"}}, "outside its directory"),
        ({"weight_map": {"x": "\ud800"}}, "outside its directory"),
        ({"weight_map": {"x": "n" * 300}}, "which the index names"),
        ({"weight_map": {"x": ["a"]}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match=said):
            read_language(copies / "llama")
    kept = [file for file in good["weight_map"].values() if (copies / "llama" / file).exists()]
    index.write_text(json.dumps({"weight_map": {"model.nowhere": kept[0]}}))
    with pytest.raises(CheckpointError, match=r"lacks model\.nowhere, which the index promises"):
        read_language(copies / "llama")
    (copies / "llama" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_language(copies / "llama")


def test_directories_that_are_not_models_are_refused(copies: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no"):
        read_language(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no"):
        read_whole(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="model_type is llama; a whole model is one of"):
        read_whole(copies / "llama")


def test_whole_numbers_are_no_weights(copies: Path) -> None:
    path = copies / "clip" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "fc1.weight" in name)
    save_file(state | {name: state[name].int()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 of whole numbers \(.*fc1\.weight torch\.int32\)"):
        read_vision(copies / "clip")

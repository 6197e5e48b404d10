"""The directory of the public VILA code, read by what is written about it and no code of ours."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from tests.support.connectors import plain
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.model import RopeConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import language_from_hf, language_json
from vila_mc.convert.formats.vila import select_feature
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.errors import CheckpointError

KINDS = (
    "linear",
    "mlp2x_gelu",
    "mlp3x_gelu",
    "mlp_downsample",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)
KEYS = {
    "linear": {"layers"},
    "mlp2x_gelu": {"layers.0", "layers.2"},
    "mlp3x_gelu": {"layers.0", "layers.2", "layers.4"},
    "mlp_downsample": {"layers.1", "layers.2", "layers.4"},
    "mlp_downsample_3x3_fix": {f"layers.{i}" for i in (1, 2, 4, 5, 7)},
    "mlp_downsample_3x3_s2": {f"layers.{i}" for i in (1, 2, 4, 5, 7, 8, 10, 11, 13)},
    "mlp_downsample_3x3_s2_new": {f"layers.{i}" for i in (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16)},
}
"""Places of layers with weights in the public code's ``nn.Sequential``."""


@pytest.fixture(scope="module")
def exported(
    tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, Path]]:
    """Its connectors on an odd grid, and what they must compute."""
    result = {}
    for kind in KINDS:
        model = tiny_model(kind, grid=3, image_mode="pad")
        vila, output = build(model), tmp_path_factory.mktemp("vila") / kind
        state = lazily(vila.canonical())
        write_export(state, model, tokenizer_path, output, torch.float32, 60_000, "vila")
        result[kind] = vila, output
    return result


def _load(model_class: type[Any], directory: Path) -> Any:
    model, report = model_class.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = {}
    for file in directory.glob("*.safetensors"):
        state |= load_file(file)
    return state


def _blocks(patches: torch.Tensor, side: int, factor: int) -> torch.Tensor:
    """[1, side * side, e] -> factor x factor blocks, row by row; outside the grid is zero."""
    width, missing = patches.shape[-1], -side % factor
    grid = torch.zeros(side + missing, side + missing, width)
    grid[:side, :side] = patches[0].view(side, side, width)
    tokens = []
    for row in range(0, grid.shape[0], factor):
        for column in range(0, grid.shape[1], factor):
            block = grid[row : row + factor, column : column + factor]
            tokens.append(block.reshape(-1))
    return torch.stack(tokens)[None]


def _connect(directory: Path, patches: torch.Tensor, side: int) -> torch.Tensor:
    kind = json.loads((directory / "config.json").read_text())["mm_projector_type"]
    w = _weights(directory)
    if kind == "linear":
        return patches @ w["layers.weight"].T + w["layers.bias"]
    x = patches
    if "downsample" in kind:
        x = _blocks(patches, side, 3 if "3x3" in kind else 2)
    places = sorted(int(name.split(".")[1]) for name in w if name.endswith("weight"))
    for place in places:
        weight, bias = w[f"layers.{place}.weight"], w[f"layers.{place}.bias"]
        if weight.dim() == 1:
            x = F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
            continue
        x = x @ weight.T + bias
        if place != places[-1]:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_reader_computes_the_same(
    kind: str, exported: dict[str, tuple[Any, Path]]
) -> None:
    vila, directory = exported[kind]
    config = json.loads((directory / "config.json").read_text())
    llm = _load(AutoModelForCausalLM, directory / "llm")
    tower = _load(CLIPVisionModel, directory / "vision_tower")
    pixels = torch.randn(1, 3, 21, 21)
    q = vila.model.visual_tokens()
    ids = torch.randint(3, VOCABULARY, (1, 6 + q))
    ids[0, 2 : 2 + q] = VOCABULARY
    with torch.inference_mode():
        states = tower(pixels, output_hidden_states=True).hidden_states
        patches = states[config["mm_vision_select_layer"]][:, 1:]
        visual = _connect(directory / "mm_projector", patches, 3)
        embeds = llm.get_input_embeddings()(ids.masked_fill(ids == VOCABULARY, 0))
        embeds[0, 2 : 2 + q] = visual[0]
        difference = llm(inputs_embeds=embeds).logits - vila.logits(ids, pixels)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_have_the_names_and_keys_that_its_loader_needs(
    kind: str, exported: dict[str, tuple[Any, Path]]
) -> None:
    _, directory = exported[kind]
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlavaLlamaModel"]
    assert config["model_type"] == "llava_llama"
    assert config["mm_vision_select_layer"] == -2
    assert config["mm_vision_select_feature"] == "patch"
    assert config["mm_use_im_patch_token"] is False
    assert config["image_aspect_ratio"] == "pad"
    assert config["resume_path"]
    assert config["image_encoder"]["end_tokens"] is None
    assert "clip" in config["vision_tower_cfg"]["architectures"][0].lower()
    assert config["mm_projector_cfg"]["mm_projector_type"] == kind
    assert config["llm_cfg"]["model_type"] == "llama"
    projector = _weights(directory / "mm_projector")
    assert {name.rpartition(".")[0] for name in projector} == KEYS[kind]
    assert all(name.startswith("vision_model.") for name in _weights(directory / "vision_tower"))
    assert (directory / "vision_tower" / "preprocessor_config.json").exists()
    # The transformers that the public code pins reads no template of its own file, and its
    # tokenizers no merges as pairs.
    tokenizer_config = json.loads((directory / "llm" / "tokenizer_config.json").read_text())
    assert "USER: " in tokenizer_config["chat_template"]
    assert not (directory / "llm" / "chat_template.jinja").exists()
    merges = json.loads((directory / "llm" / "tokenizer.json").read_text())["model"]["merges"]
    assert all(merge.count(" ") == 1 for merge in merges)
    tokenizer = AutoTokenizer.from_pretrained(directory / "llm")
    assert tokenizer.chat_template
    assert len(tokenizer) == VOCABULARY


def test_every_patch_of_a_siglip_is_kept_under_the_public_codes_name() -> None:
    model = tiny_model()
    siglip = dataclasses.replace(model.vision, family="siglip")
    assert select_feature(model.vision) == "patch"  # drops the class token
    assert select_feature(siglip) == "cls_patch"  # drops nothing


def test_linearly_stretched_positions_are_said_in_two_words() -> None:
    rope = RopeConfig(scaling="linear", factor=4.0)
    language = dataclasses.replace(tiny_model().language, rope=rope)
    written = language_json(language)
    assert written["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert written["rope_parameters"]["rope_type"] == "linear"
    del written["rope_parameters"]
    assert language_from_hf(ConfigValues(written, None)) == language


_BASIC = "llava.model.encoders.BasicImageEncoder"


def test_a_newline_after_every_image_is_said(
    exported: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    _, directory = exported["linear"]
    shutil.copytree(directory, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    assert "newline" not in read_whole(tmp_path / "other").kind
    for encoder in ({"_target_": _BASIC}, json.dumps({"_target_": _BASIC, "end_tokens": "\n"})):
        path.write_text(json.dumps(config | {"image_encoder": encoder}))
        assert "a newline after every image" in read_whole(tmp_path / "other").kind
    del config["image_encoder"]
    path.write_text(json.dumps(config))
    assert "newline" not in read_whole(tmp_path / "other").kind


def _copied(exported: dict[str, tuple[Any, Path]], kind: str, to: Path) -> tuple[Path, Path]:
    """A copy of an export, and its projector's config."""
    shutil.copytree(exported[kind][1], to)
    return to, to / "mm_projector" / "config.json"


def _edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_the_order_of_tokens_follows_the_age_of_the_directory(
    exported: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    """The release that turned it also brought image encoders into the config."""
    other, projector = _copied(exported, "mlp_downsample", tmp_path / "other")
    today = read_whole(other)
    assert today.model.connector.token_order == "rows"
    assert "visual tokens by rows, as the public code since 2024-12-12" in today.kind
    _edit(other / "config.json", image_encoder=None)
    old = read_whole(other)
    assert old.model.connector.token_order == "columns"
    assert "visual tokens by columns, as the public code before 2024-12-12" in old.kind
    assert read_whole(other, token_order="rows").model == today.model
    _edit(projector, mm_projector_type="mlp_downsample_2x2_fix")  # that code knew no such name
    assert read_whole(other).model == today.model


def test_columns_compute_what_the_code_of_then_computes(
    exported: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    other, _ = _copied(exported, "mlp_downsample", tmp_path / "other")
    _edit(other / "config.json", image_encoder=None)
    source = read_whole(other)
    weights = {n.removeprefix("connector."): t.read() for n, t in source.tensors.items()}
    patches = torch.randn(1, 9, source.model.vision.width)
    then = _connect(other / "mm_projector", patches, 3)[:, [0, 2, 1, 3]]  # of 2 x 2, by columns
    assert (plain(source.model.connector, weights, patches) - then).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["linear", "mlp_downsample"])
def test_an_order_that_a_directory_says_itself_is_refused(
    kind: str, exported: dict[str, tuple[Any, Path]], tmp_path: Path, tokenizer_path: Path
) -> None:
    model = tiny_model(kind)
    state = lazily(build(model).canonical())
    write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, 60_000, "hf-vila")
    with pytest.raises(CheckpointError, match="format hf-vila says it itself"):
        read_whole(tmp_path / "hf", token_order="columns")
    if kind == "linear":
        with pytest.raises(CheckpointError, match="linear keeps the order of the patches"):
            read_whole(exported[kind][1], token_order="columns")


def test_what_another_reader_of_images_made_is_refused(
    exported: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    _, directory = exported["linear"]
    shutil.copytree(directory, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    for key, value in (
        ("mm_vision_select_layer", 0),
        ("mm_vision_select_layer", -1001),
        ("mm_vision_select_layer", None),
        ("mm_vision_select_feature", "cls_patch"),
        ("s2", True),
        ("image_aspect_ratio", "dynamic"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", "false"),
        ("ps3", True),
        ("num_time_tokens", 10),
        ("vision_resolution", 448),
        ("image_encoder", {"_target_": "llava.model.encoders.TSPVideoEncoder"}),
        ("image_encoder", {"_target_": _BASIC, "start_tokens": "<image>"}),
        ("image_encoder", {"_target_": _BASIC, "end_tokens": "</image>"}),
        ("image_encoder", "[[["),
        ("image_encoder", 3),
        ("speech_tower_cfg", {"hidden_size": 3}),
    ):
        path.write_text(json.dumps(config | {key: value}))
        with pytest.raises(CheckpointError, match=key):
            read_whole(tmp_path / "other")
    projector = tmp_path / "other" / "mm_projector" / "config.json"
    path.write_text(json.dumps(config))
    projector.write_text(json.dumps({"mm_projector_type": "mlp_downsample_9x9"}))
    with pytest.raises(CheckpointError, match="mm_projector_type is mlp_downsample_9x9"):
        read_whole(tmp_path / "other")

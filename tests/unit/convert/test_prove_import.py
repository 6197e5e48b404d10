"""An import is proven against its source, and what was read wrongly is found."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
)

from tests.support import families
from tests.support.connectors import connector_of
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.load import load_run
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.describe import describe
from vila_mc.convert.export_checkpoint import Question, prove_export
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.proof import fresh_request
from vila_mc.convert.proof.compare_source import compare_source
from vila_mc.convert.proof.fresh_process import answer_requests
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import model_parameters


@pytest.fixture(scope="module")
def published(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with the embeddings of a trained one, and a CLIP, as their makers publish them."""
    folder, vila = tmp_path_factory.mktemp("published"), build(tiny_model())
    with torch.no_grad():
        vila.llama.model.embed_tokens.weight.mul_(0.02)
    vila.llama.save_pretrained(folder / "llm")
    vila.clip.save_pretrained(folder / "vision")
    size = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(
        folder / "vision"
    )
    shutil.copyfile(tokenizer_path, folder / "llm" / "tokenizer.model")
    return folder


@pytest.fixture
def parts(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published, tmp_path / "parts")
    return tmp_path / "parts"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare here and now: a fresh process takes seconds to start."""
    monkeypatch.setattr(fresh_request, "_run", lambda folder, _: answer_requests(folder))


def _import(parts: Path, **options: Any) -> ForeignModel:
    source = combine_parts(parts / "llm", parts / "vision", "mlp_downsample", **options)
    import_checkpoint(source, parts / "ours")
    return source


def test_parts_are_proven_each_on_its_own(parts: Path) -> None:
    """In a real fresh process."""
    proof = compare_source(_import(parts), parts / "ours")
    assert [text.split()[0] for text in proof.proven] == ["pixels", "tokens", "logits", "features"]
    assert not proof.unproven


def test_the_recipe_names_paths_that_hold_from_every_folder(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = (
        parts / "a folder of a name with spaces, long enough to be folded at eighty columns" / "b"
    )
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    source = combine_parts(parts / "llm", parts / "vision", "mlp_downsample")
    import_checkpoint(source, Path("../b/./../ours"))
    monkeypatch.chdir(parts)
    recipe = below.parent / "ours" / "model.yaml"
    (line,) = [line for line in recipe.read_text().splitlines() if "tokenizer" in line]
    assert line == f"  tokenizer: {below.parent}/ours/tokenizer/tokenizer.model"
    run = load_run([recipe], {"data.sequence_length": 64})
    assert (run.data.tokenizer or Path()).is_file()


def test_an_import_leaves_its_source_and_its_output_alone(parts: Path) -> None:
    """Where it is refused, and where it fails half way."""
    source = combine_parts(parts / "llm", parts / "vision", "linear")
    before = sorted(parts.rglob("*"))
    with pytest.raises(CheckpointError, match=r"vision holds .*needs a new or empty directory"):
        import_checkpoint(source, parts / "vision")
    name = "language.decoder.final_layernorm.weight"
    spoiled = lazily({name: torch.full(source.tensors[name].shape, torch.nan)})
    source = dataclasses.replace(source, tensors=source.tensors | spoiled)
    with pytest.raises(CheckpointError, match="holds NaN"):
        import_checkpoint(source, parts / "ours")
    assert sorted(parts.rglob("*")) == before


@pytest.mark.parametrize("is_streamed", [False, True])
def test_bf16_weights_are_rounded_on_both_sides(
    is_streamed: bool, parts: Path, in_process: None
) -> None:
    source = combine_parts(parts / "llm", parts / "vision", "linear")
    import_checkpoint(source, parts / "ours", "bf16")
    proof = compare_source(source, parts / "ours", is_streamed=is_streamed)
    assert len(proof.proven) == 4


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _swap(path: Path, one: str, other: str) -> None:
    state = load_file(path)
    state[one], state[other] = state[other], state[one]
    save_file(state, path, metadata={"format": "pt"})


def _swap_gate_and_up(parts: Path) -> None:
    names = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    _swap(parts / "llm" / "model.safetensors", *names)


def _swap_key_and_value_of_the_tower(parts: Path) -> None:
    (name,) = (
        name
        for name in load_file(parts / "vision" / "model.safetensors")
        if name.endswith("layers.0.self_attn.k_proj.weight")
    )
    _swap(parts / "vision" / "model.safetensors", name, name.replace("k_proj", "v_proj"))


def _rotate_by_another_base(parts: Path) -> None:
    config = json.loads((parts / "llm" / "config.json").read_text())
    rope = config["rope_parameters"] | {"rope_theta": 20000.0}
    _edit(parts / "llm" / "config.json", rope_parameters=rope)


def _normalise_with_another_epsilon(parts: Path) -> None:
    _edit(parts / "llm" / "config.json", rms_norm_eps=1e-6)


def _read_pixels_with_another_mean(parts: Path) -> None:
    _edit(parts / "vision" / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])


def _read_another_layer(parts: Path) -> None:
    config = json.loads((parts / "vision" / "config.json").read_text())
    _edit(parts / "vision" / "config.json", num_hidden_layers=config["num_hidden_layers"] - 1)


def _stretch_images(parts: Path) -> None:
    square = {"height": 28, "width": 28}
    _edit(parts / "vision" / "preprocessor_config.json", do_center_crop=False, size=square)


def _take_another_token_for_the_end(parts: Path) -> None:
    from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer

    model = load_convertible(parts / "llm" / "tokenizer.model", VOCABULARY)
    write_tokenizer(model, parts / "llm", 64)
    _edit(parts / "llm" / "tokenizer_config.json", eos_token="<unk>")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_swap_gate_and_up, "the logits of .*llm differ"),
        (_rotate_by_another_base, "the logits of .*llm differ"),
        (_normalise_with_another_epsilon, "the logits of .*llm differ"),
        (_swap_key_and_value_of_the_tower, "the features of .*vision differ"),
        (_read_another_layer, "the features of .*vision differ"),
        (_read_pixels_with_another_mean, "pixels: .* other pixels of an image of"),
        (_stretch_images, "pixels: .* other pixels of an image of"),
        (_take_another_token_for_the_end, "tokens: .* ends them with"),
    ],
)
def test_what_was_read_wrongly_is_found(
    fault: Callable[..., Any], said: str, parts: Path, in_process: None
) -> None:
    source = _import(parts)
    fault(parts)  # as good as an import that read it wrongly
    with pytest.raises(CheckpointError, match=said) as caught:
        compare_source(source, parts / "ours")
    assert "\n" not in str(caught.value)


def test_what_does_not_load_is_not_called_proven(parts: Path, in_process: None) -> None:
    source = _import(parts)
    (parts / "vision" / "preprocessor_config.json").unlink()
    _edit(parts / "llm" / "config.json", model_type="of the future")
    proof = compare_source(source, parts / "ours")
    assert [text.split()[0] for text in proof.proven] == ["tokens", "features"]
    assert [text.split(":")[0] for text in proof.unproven] == ["pixels", "logits"]
    assert "cannot load" in proof.unproven[1]


@pytest.mark.parametrize("name", families.NAMES)
def test_parts_of_every_family(name: str, tmp_path: Path, in_process: None) -> None:
    family = families.make(name)
    family.save(tmp_path)
    source = combine_parts(
        tmp_path / "llm",
        tmp_path / "vision",
        family.connector,
        select_layer=family.select_layer,
    )
    if source.model.vision.family == "siglip":
        side = source.model.vision.image_size
        SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(
            tmp_path / "vision"
        )
    import_checkpoint(source, tmp_path / "ours")
    proof = compare_source(source, tmp_path / "ours")
    proven = {text.split()[0] for text in proof.proven}
    assert {"logits", "features"} <= proven
    assert ("pixels" in proven) == (source.model.vision.family == "siglip")


def test_a_llava_that_transformers_saved(tmp_path: Path, in_process: None) -> None:
    vila = build(tiny_model("mlp2x_gelu"))
    text = vila.llama.config.to_dict() | {"vocab_size": VOCABULARY + 15}
    config = LlavaConfig(
        vision_config=vila.clip.config.to_dict(),
        text_config=text,
        image_token_index=VOCABULARY,
        vision_feature_layer=-2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    source = read_whole(tmp_path / "llava")
    import_checkpoint(source, tmp_path / "ours")
    for is_streamed in (False, True):
        proof = compare_source(source, tmp_path / "ours", is_streamed=is_streamed)
        assert [text.split()[0] for text in proof.proven] == ["logits"]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, mode) for kind in ("hf-llava", "vila") for mode in ("crop", "pad", "resize")),
        *(("hf-vila", mode) for mode in ("crop", "pad", "resize", "tiles")),
    ],
)
def test_whole_models(
    kind: str, mode: str, tokenizer_path: Path, tmp_path: Path, in_process: None
) -> None:
    model = tiny_model("mlp2x_gelu", image_mode=mode)
    if mode == "tiles":
        vision = dataclasses.replace(model.vision, max_tiles=5, tile_newline=13)
        model = dataclasses.replace(model, vision=vision)
    state = lazily(build(model).canonical())
    write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, format=kind)
    source = read_whole(tmp_path / "hf")
    import_checkpoint(source, tmp_path / "ours")
    proof = compare_source(source, tmp_path / "ours", is_streamed=mode == "pad")
    assert len(proof.proven) == 3, proof
    if mode == "tiles":  # and back: the export of that import, with a question about several tiles
        assert source.model == model
        facts = dict(describe(tmp_path / "hf"))
        assert "cut into at most 5 tiles and a thumbnail, token 13 behind each" in facts["vision"]
        assert "visual tokens per tile" in facts["connector"]
        exported = prove_export(
            tmp_path / "ours", tmp_path / "hf", Question("Why?"), tokenizer_path
        )
        assert exported.result.greedy_equal
        assert len(exported.result.answers) == 1


@pytest.mark.parametrize("kind", ["hf-llava", "vila"])
def test_formats_without_a_place_for_tiles(kind: str, tokenizer_path: Path, tmp_path: Path) -> None:
    model = tiny_model("mlp2x_gelu", image_mode="tiles")
    state = lazily(build(model).canonical())
    with pytest.raises(CheckpointError, match=f"{kind} has no place for images cut into tiles"):
        write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, format=kind)


@pytest.mark.parametrize("given", [None, "rows", "columns"])
def test_the_order_of_visual_tokens_is_proven_with_the_rest(
    given: Any, tokenizer_path: Path, tmp_path: Path, in_process: None
) -> None:
    """Of a directory that code of before 2024-12-12 wrote."""
    model = tiny_model("mlp_downsample", grid=3)
    state = lazily(build(model).canonical())
    write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, format="vila")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["image_encoder"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    source = read_whole(tmp_path / "hf", token_order=given)
    assert source.model.connector.token_order == (given or "columns")
    import_checkpoint(source, tmp_path / "ours")
    proof = compare_source(source, tmp_path / "ours")
    assert "logits" in [text.split()[0] for text in proof.proven]


@pytest.mark.parametrize(
    ("connector", "format"),
    [
        ("mlp3x_gelu", "vila"),
        ("mlp_downsample_3x3_fix", "vila"),
        ("mlp_downsample_3x3_s2_new", "vila"),
        ("mlp_downsample_3x3_s2_new by columns", "hf-vila"),
        ("pooling bilinear", "hf-vila"),
        ("transformer", "hf-vila"),
        ("qformer", "hf-vila"),
    ],
)
def test_connectors_pass_through_the_proofs(
    connector: str, format: Any, tokenizer_path: Path, tmp_path: Path, in_process: None
) -> None:
    model = tiny_model(connector, grid=3)
    state = lazily(build(model).canonical())
    write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, format=format)
    source = read_whole(tmp_path / "hf")
    assert source.model == model
    import_checkpoint(source, tmp_path / "ours")
    proof = compare_source(source, tmp_path / "ours", is_streamed=connector == "qformer")
    assert "logits" in [text.split()[0] for text in proof.proven]


def test_a_new_qformer_between_parts_is_whole(parts: Path) -> None:
    source = combine_parts(parts / "llm", parts / "vision", connector_of("qformer"))
    shapes = {each.name: each.shape for each in model_parameters(source.model)}
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == shapes
    queries = source.tensors["connector.queries.weight"].read()
    assert 0.01 < queries.std() < 0.03
    assert (source.tensors["connector.blocks.1.norm.weight"].read() == 1).all()

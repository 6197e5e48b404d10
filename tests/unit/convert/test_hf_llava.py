"""LLaVA of transformers: read as it is published, written as it is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from tests.unit.convert.independent_vila import VOCABULARY, IndependentVila, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.errors import CheckpointError

ROWS = VOCABULARY + 15  # as LLaVA-1.5 has rows for its placeholder and for padding


def _save_llava(vila: IndependentVila, folder: Path, rows: int = ROWS, **options: Any) -> Any:
    """A LLaVA with the parts of ``vila``, its placeholder on the first row after the tokens."""
    text = vila.llama.config.to_dict() | {"vocab_size": rows}
    config = LlavaConfig(
        vision_config=vila.clip.config.to_dict(),
        text_config=text,
        image_token_index=VOCABULARY,
        vision_feature_layer=-2,
        **options,
    )
    torch.manual_seed(5)
    llava = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in llava.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    llava.save_pretrained(folder)
    return llava.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("llava") / "published"
    return _save_llava(build(tiny_model("mlp2x_gelu")), folder), folder


def test_there_and_back_every_tensor_keeps_its_name_and_bits(
    published: tuple[Any, Path], tokenizer_path: Path, tmp_path: Path
) -> None:
    llava, folder = published
    whole = read_whole(folder)
    assert whole.model.connector.title() == "mlp2x_gelu"
    assert whole.model.language.vocab_size == ROWS
    output = tmp_path / "out"
    write_export(
        whole.tensors, whole.model, tokenizer_path, output, torch.float32, format="hf-llava"
    )
    before, after = (load_file(d / "model.safetensors") for d in (folder, output))
    after = {
        name.replace("vision_tower.vision_model.", "vision_tower."): t for name, t in after.items()
    }
    before = {
        name.replace("vision_tower.vision_model.", "vision_tower."): t for name, t in before.items()
    }
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        if ("layers.2." in name and "vision" in name) or "post_layernorm" in name:
            continue  # no feature passes through the last layer
        assert torch.equal(after[name], tensor), name
    assert json.loads((output / "config.json").read_text())["image_token_index"] == VOCABULARY

    again, report = LlavaForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(3, 300, (2, 30))
    ids[0, 2:18] = ids[1, 9:25] = VOCABULARY
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        expected = llava(input_ids=ids, pixel_values=pixels).logits
        assert torch.equal(again.eval()(input_ids=ids, pixel_values=pixels).logits, expected)


def test_the_processor_of_transformers_finds_the_placeholder(
    tokenizer_path: Path, tmp_path: Path, photo: bytes
) -> None:
    model = tiny_model("linear")
    state = lazily(build(model).canonical())
    output = tmp_path / "out"
    write_export(state, model, tokenizer_path, output, torch.float32, format="hf-llava")
    (tmp_path / "photo.png").write_bytes(photo)
    processor = AutoProcessor.from_pretrained(output)
    question = [
        {"type": "image", "path": str(tmp_path / "photo.png")},
        {"type": "text", "text": "What?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    loaded = LlavaForConditionalGeneration.from_pretrained(output)
    assert (inputs["input_ids"] == loaded.config.image_token_id).sum() == model.visual_tokens()
    ids = loaded.generate(**inputs, max_new_tokens=12)
    assert not (ids[:, inputs["input_ids"].shape[1] :] == loaded.config.image_token_id).any()


def test_sparse_configs_mean_the_defaults_of_transformers(
    published: tuple[Any, Path], tmp_path: Path
) -> None:
    """As llava-1.5-7b has it: the text config says little more than that it is a Llama."""
    _, folder = published
    shutil.copytree(folder, tmp_path / "sparse")
    path = tmp_path / "sparse" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 32064}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mis-shaped") as caught:
        read_whole(tmp_path / "sparse")
    assert "(connector)" in str(caught.value)
    assert "instead of [4096" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_feature_layer", 0),
        ("vision_feature_layer", [-1, -2]),
        ("vision_feature_layer", -1001),
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", False),
    ],
)
def test_what_we_do_not_compute_is_refused_by_key(
    key: str, value: bool | int | str | list[int], published: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = published
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        read_whole(tmp_path / "other")


def test_a_surplus_part_is_refused(published: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = published
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    state = load_file(file) | {"audio_tower.weight": torch.zeros(2)}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 surplus \(audio_tower\.weight\)"):
        read_whole(tmp_path / "other")

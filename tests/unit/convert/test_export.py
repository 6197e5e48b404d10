"""An export computes what its parts compute, and appears whole or not at all."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.connectors import CASES
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats import hf_vila
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.output_directory import MANIFEST
from vila_mc.errors import CheckpointError

Exported = tuple[Path, ModelConfig, dict[str, torch.Tensor]]


def _inputs(model: ModelConfig, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows: two images and text; text, one image, text."""
    q = model.visual_tokens()
    generator = torch.Generator().manual_seed(seed)
    length = 2 * q + 9
    token_ids = torch.randint(3, VOCABULARY, (2, length), generator=generator)
    token_ids[0, 1 : 1 + q] = token_ids[0, 4 + q : 4 + 2 * q] = VOCABULARY
    token_ids[1, 5 : 5 + q] = VOCABULARY
    size = model.vision.image_size
    return token_ids, torch.randn(3, 3, size, size, generator=generator)


@pytest.mark.parametrize("grid", [4, 3])
@pytest.mark.parametrize("kind", CASES)
def test_logits_equal_an_independent_construction(
    kind: str, grid: int, tokenizer_path: Path, load_export: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model(kind, grid)
    vila = build(model)
    write_export(lazily(vila.canonical()), model, tokenizer_path, tmp_path / "out", torch.float32)
    loaded, _ = load_export(tmp_path / "out")
    token_ids, pixels = _inputs(model)
    with torch.inference_mode():
        expected = vila.logits(token_ids, pixels)
        output = loaded(input_ids=token_ids, pixel_values=pixels, labels=token_ids)
    assert expected.std() > 0.1
    assert (output.logits - expected).abs().max() < 1e-5
    targets = token_ids[:, 1:].masked_fill(token_ids[:, 1:] == VOCABULARY, -100)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].transpose(1, 2), targets)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.fixture(scope="module")
def exported(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = tiny_model()
    directory = tmp_path_factory.mktemp("exported") / "vila"
    state = build(model).canonical()
    write_export(
        lazily(state), model, tokenizer_path, directory, torch.float32, max_shard_bytes=60_000
    )
    return directory, model, state


def test_large_weights_are_sharded_and_read_back(exported: Exported) -> None:
    directory, model, state = exported
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    whole = read_whole(directory)
    assert whole.model == model
    assert whole.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(whole.tensors[name].read()[:400], tensor[:400]), name


def test_generation_with_the_cache_equals_generation_without(
    exported: Exported, load_export: Callable[..., Any]
) -> None:
    loaded, _ = load_export(exported[0])
    token_ids, pixels = _inputs(exported[1])
    mask = torch.ones_like(token_ids)
    mask[1, :3] = 0  # left padding
    arguments = {
        "input_ids": token_ids,
        "pixel_values": pixels,
        "attention_mask": mask,
        "max_new_tokens": 8,
        "min_new_tokens": 8,
    }
    cached = loaded.generate(**arguments, use_cache=True)
    plain = loaded.generate(**arguments, use_cache=False)
    assert cached.shape[1] == token_ids.shape[1] + 8
    assert torch.equal(cached, plain)
    assert cached[:, token_ids.shape[1] :].max() < VOCABULARY


def test_generating_warns_of_nothing(
    exported: Exported, load_export: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers warns through Python, and through a logger of its own on stderr."""
    loaded, _ = load_export(exported[0])
    token_ids, pixels = _inputs(exported[1])
    mask = torch.ones_like(token_ids)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.generate(
            input_ids=token_ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=3
        )
    assert capfd.readouterr().err == ""


def test_only_the_first_step_sees_pixels(
    exported: Exported,
    load_export: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, _ = load_export(exported[0])
    token_ids, pixels = _inputs(exported[1])
    calls = []
    encode = loaded.get_image_features
    monkeypatch.setattr(loaded, "get_image_features", lambda p: calls.append(1) or encode(p))
    loaded.generate(
        input_ids=token_ids, pixel_values=pixels, max_new_tokens=5, min_new_tokens=5, num_beams=2
    )
    assert len(calls) == 1


def test_repetition_penalty_survives_the_placeholder(
    exported: Exported, load_export: Callable[..., Any]
) -> None:
    loaded, _ = load_export(exported[0])
    token_ids, pixels = _inputs(exported[1])
    arguments = dict(input_ids=token_ids, pixel_values=pixels, max_new_tokens=12)
    plain = loaded.generate(**arguments)
    penalised = loaded.generate(**arguments, repetition_penalty=100.0)
    start = token_ids.shape[1]
    assert torch.equal(penalised[:, :start], token_ids)
    assert not torch.equal(penalised, plain)
    for row in penalised[:, start:].tolist():
        assert len(set(row)) == len(row)  # such a penalty rules every repetition out


def test_placeholders_and_images_must_agree(
    exported: Exported, load_export: Callable[..., Any]
) -> None:
    loaded, _ = load_export(exported[0])
    token_ids, pixels = _inputs(exported[1])
    with pytest.raises(ValueError, match="12 image placeholders, but 2 images x 4"):
        loaded(input_ids=token_ids, pixel_values=pixels[:2])
    with pytest.raises(ValueError, match="no pixel_values"):
        loaded(input_ids=token_ids)


def test_causal_lm_auto_class_and_save_pretrained(
    exported: Exported,
    load_export: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    loaded, processor = load_export(exported[0])
    causal = AutoModelForCausalLM.from_pretrained(exported[0], trust_remote_code=True)
    assert type(causal).__name__ == "VilaForConditionalGeneration"
    loaded.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, processor_again = load_export(tmp_path / "saved")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert processor_again.image_seq_length == processor.image_seq_length
    assert processor_again.image_processor.image_mode == processor.image_processor.image_mode


def test_the_pipeline_of_transformers_runs(exported: Exported) -> None:
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model=str(exported[0]), trust_remote_code=True)
    image = Image.new("RGB", (40, 50), (9, 99, 9))
    question = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    output = answer(text=[{"role": "user", "content": question}], max_new_tokens=2)
    assert output[0]["generated_text"][-1]["role"] == "assistant"


def test_bfloat16_export_loads_as_bfloat16(
    tokenizer_path: Path, load_export: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model()
    write_export(lazily(build(model).canonical()), model, tokenizer_path, tmp_path / "out")
    loaded, _ = load_export(tmp_path / "out")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    token_ids, pixels = _inputs(model)
    assert loaded(input_ids=token_ids, pixel_values=pixels).logits.isfinite().all()


def test_an_earlier_export_is_replaced(
    exported: Exported,
    tokenizer_path: Path,
    tmp_path: Path,
) -> None:
    _, model, state = exported
    output = tmp_path / "out"
    for _ in range(2):
        write_export(lazily(state), model, tokenizer_path, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    files = sorted(path.name for path in output.iterdir())
    assert files == json.loads((output / MANIFEST).read_text())["files"]


def test_anything_else_at_the_target_is_refused(
    exported: Exported,
    tokenizer_path: Path,
    tmp_path: Path,
) -> None:
    _, model, state = exported

    def export(output: Path) -> None:
        write_export(lazily(state), model, tokenizer_path, output)

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    with pytest.raises(CheckpointError, match="files that no export wrote"):
        export(tmp_path / "thesis")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a directory"):
        export(tmp_path / "file")
    export(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt, which no export wrote"):
        export(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        export(tmp_path / "out")


def test_a_failed_export_leaves_nothing_behind(
    exported: Exported,
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model, state = exported
    write_export(lazily(state), model, tokenizer_path, tmp_path / "old")
    before = (tmp_path / "old" / "model.safetensors").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(hf_vila, "write_json", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="No space"):
            write_export(lazily(state), model, tokenizer_path, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == before


def test_half_precision_is_refused(
    exported: Exported,
    tokenizer_path: Path,
    tmp_path: Path,
) -> None:
    _, model, state = exported
    with pytest.raises(CheckpointError, match="float32 or bfloat16"):
        write_export(lazily(state), model, tokenizer_path, tmp_path / "out", torch.float16)

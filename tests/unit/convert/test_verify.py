"""Verification passes what is right and catches what is wrong, in a fresh process."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.unit.convert.independent_vila import VOCABULARY, IndependentVila, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.formats.write_export import write_export, written_format
from vila_mc.convert.proof import fresh_request
from vila_mc.convert.proof.compare import (
    ProofPrompt,
    Reference,
    compare_export,
    export_request,
)
from vila_mc.convert.proof.fresh_process import answer_requests
from vila_mc.convert.proof.fresh_request import RESULT
from vila_mc.errors import CheckpointError
from vila_mc.flow import Microbatch
from vila_mc.kernels.reference import normalize_images

WORDS = "<image>\nTwo dogs run"


@pytest.fixture(scope="module")
def case(
    tokenizer_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    load_export: Callable[..., Any],
    photo: bytes,
) -> tuple[Path, Reference]:
    """An export, and what its independent twin computes."""
    model = tiny_model()
    vila = build(model)
    directory = tmp_path_factory.mktemp("verify") / "vila"
    write_export(lazily(vila.canonical()), model, tokenizer_path, directory, torch.float32)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, VOCABULARY, (2, 16), generator=generator)
    starts = torch.tensor([[0, 2], [1, 7]])
    for row, start in starts.tolist():
        tokens[row, start : start + 4] = 0
    images = torch.randint(0, 256, (2, 3, 28, 28), generator=generator, dtype=torch.uint8)
    batch = Microbatch(tokens, tokens, images, starts, num_samples=2)
    with_places = tokens.clone()
    with_places[0, 2:6] = with_places[1, 7:11] = VOCABULARY
    with torch.inference_mode():
        logits = vila.logits(with_places, normalize_images(images, torch.float32))
    padding = torch.full((2, 16, 15), -1e9)
    prompt = ProofPrompt(WORDS, (photo,), _greedy(vila, directory, photo, load_export))
    reference = Reference.of_microbatch(
        batch, torch.cat([logits, padding], dim=-1), model, (prompt,)
    )
    return directory, reference


def _greedy(
    vila: IndependentVila,
    directory: Path,
    photo: bytes,
    load_export: Callable[..., Any],
    steps: int = 6,
) -> tuple[int, ...]:
    """The answer of the twin, one full forward pass per token."""
    _, processor = load_export(directory)
    inputs = processor(text=WORDS, images=Image.open(io.BytesIO(photo)), return_tensors="pt")
    ids, answer = inputs["input_ids"], []
    for _ in range(steps):
        with torch.inference_mode():
            answer.append(vila.logits(ids, inputs["pixel_values"])[0, -1].argmax().item())
        ids = torch.cat([ids, torch.tensor([[answer[-1]]])], dim=1)
    return tuple(answer)


def test_a_good_export_passes(case: tuple[Path, Reference]) -> None:
    result = compare_export(*case, tolerance=1e-5)
    assert 0 <= result.mean_difference <= result.max_difference < 1e-5
    assert result.greedy_equal
    assert len(result.answers) == 1
    assert isinstance(result.answers[0], str)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare here and now: a fresh process takes seconds to start."""

    monkeypatch.setattr(fresh_request, "_run", lambda folder, _: answer_requests(folder))


def test_swapped_weights_are_caught(
    case: tuple[Path, Reference], tmp_path: Path, in_process: None
) -> None:
    directory, reference = case
    shutil.copytree(directory, tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    state = load_file(file)
    first, second = (f"language_model.model.layers.0.self_attn.{x}_proj.weight" for x in "kv")
    state[first], state[second] = state[second], state[first]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"logits .* differ .* max .*, mean .*, tolerance"):
        compare_export(tmp_path / "bad", reference)


def _fault(export: Path, reference: Reference, folder: Path) -> str:
    """What the fresh process would report, without starting one."""
    export_request(export, reference).write(folder / "request")
    answer_requests(folder)
    return json.loads((folder / "request" / RESULT).read_text())["fault"]


def test_a_missing_weight_is_caught_although_transformers_only_warns(
    case: tuple[Path, Reference], tmp_path: Path
) -> None:
    directory, reference = case
    shutil.copytree(directory, tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    state = load_file(file)
    del state["vision_tower.pre_layrnorm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    fault = _fault(tmp_path / "bad", reference, tmp_path)
    assert "do not match" in fault
    assert "vision_tower.pre_layrnorm.weight" in fault


def test_another_tokenizer_is_caught(case: tuple[Path, Reference], tmp_path: Path) -> None:
    directory, reference = case
    shutil.copytree(directory, tmp_path / "bad")
    file = tmp_path / "bad" / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["normalizer"]["normalizers"][0]  # no dummy space in front
    file.write_text(json.dumps(content))
    assert "the tokenizer reads" in _fault(tmp_path / "bad", reference, tmp_path)


def test_a_reference_of_another_vocabulary_is_caught(
    case: tuple[Path, Reference], tmp_path: Path
) -> None:
    directory, reference = case
    narrow = dataclasses.replace(reference, logits=reference.logits[..., :9])
    assert "logits of 9 tokens" in _fault(directory, narrow, tmp_path)


def test_a_truncated_file_gives_one_clear_line(
    case: tuple[Path, Reference], tmp_path: Path
) -> None:
    directory, reference = case
    shutil.copytree(directory, tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="does not load in a fresh process") as caught:
        compare_export(tmp_path / "bad", reference)
    assert "\n" not in str(caught.value)


def test_another_answer_is_caught(case: tuple[Path, Reference], in_process: None) -> None:
    directory, reference = case
    prompt = reference.prompts[0]
    wrong = (*prompt.greedy_ids[:-1], (prompt.greedy_ids[-1] + 1) % VOCABULARY)
    changed = dataclasses.replace(
        reference, prompts=(ProofPrompt(prompt.text, prompt.images, wrong),)
    )
    with pytest.raises(CheckpointError, match="prompt 1 gives tokens"):
        compare_export(directory, changed)


def test_not_finite_reference_and_wrong_shapes_are_refused(case: tuple[Path, Reference]) -> None:
    directory, reference = case
    with pytest.raises(CheckpointError, match="not finite"):
        compare_export(
            directory,
            dataclasses.replace(reference, logits=reference.logits * torch.nan),
        )
    with pytest.raises(CheckpointError, match=r"logits \[2, 15"):
        compare_export(
            directory,
            dataclasses.replace(reference, logits=reference.logits[:, 1:]),
        )


def test_a_directory_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no export of vila_mc"):
        written_format(tmp_path)

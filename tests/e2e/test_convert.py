"""tools/convert_checkpoint.py as a person uses it, from published weights to a proven export."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import families
from tests.support.launching import REPOSITORY
from tests.support.tiny_data import random_sentences
from vila_mc.data.tokenizers.tokenizer import train_tokenizer


def _convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/convert_checkpoint.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama long enough for a question, its tokenizer beside it, and a CLIP."""
    folder = tmp_path_factory.mktemp("published")
    family = families.make("vicuna 16k on CLIP")
    config = LlamaConfig(
        vocab_size=families.VOCABULARY,
        hidden_size=64,
        intermediate_size=88,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    dataclasses.replace(family, language=LlamaForCausalLM(config)).save(folder)
    train_tokenizer(random_sentences(200), folder / "llm" / "tokenizer.model", families.VOCABULARY)
    return folder


def test_published_weights_to_a_proven_export(published: Path, tmp_path: Path) -> None:
    imported, exported, result = (tmp_path / name for name in ("ours", "hf", "result.json"))
    parts = ("--llm", published / "llm", "--vision", published / "vision")
    run = _convert("import", *parts, "--output", imported)
    assert run.returncode == 0, run.stderr
    assert f"--config {imported / 'model.yaml'} --train.load {imported}" in run.stdout

    image = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image, "PNG")
    (tmp_path / "photo.png").write_bytes(image.getvalue())
    run = _convert(
        *(
            "export",
            "--checkpoint",
            imported,
            "--output",
            exported,
            "--shard-size",
            "100KB",
            "--dtype",
            "bf16",
        ),
        *("--question", "What is this?", "--image", tmp_path / "photo.png", "--result", result),
    )
    assert run.returncode == 0, run.stderr
    assert "verified in a fresh process" in run.stdout
    proof = json.loads(result.read_text())
    assert 0 <= proof["mean_logit_difference"] <= proof["max_logit_difference"] < 1e-5
    assert proof["greedy_answers_equal"] is True
    assert len(proof["answers"]) == 2


def test_a_damaged_file_is_one_line(published: Path) -> None:
    weights = published / "vision" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    run = _convert("inspect", published / "vision")
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert "damaged or cut short" in run.stderr
    assert run.stderr.count("\n") == 1

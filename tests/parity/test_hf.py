"""What the training model computes is what transformers and plain torch compute."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.support import hugging_face
from tests.support.connectors import plain
from tests.support.hugging_face import GRID, PATCH, VOCABULARY, random_clip, random_llama
from tests.support.tiny_data import random_sentences
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.load import run_from_dict
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.proof.compare import Reference, compare_export
from vila_mc.convert.read_parts import read_language, read_vision
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.kernels.ops import normalize_patchify
from vila_mc.kernels.reference import normalize_images
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed

TOLERANCE = 1e-5
LENGTH = 24


@dataclass
class Pair:
    """Their parts, and our whole model with their weights."""

    llama: Any
    clip: Any
    ours: Any
    model: ModelConfig


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("published")
    llama, clip = random_llama(), random_clip()
    hugging_face.save(folder, llama, clip)
    vision, tower = read_vision(folder / "clip")
    language, decoder = read_language(folder / "llama")
    model = ModelConfig(vision=vision, language=language, connector=ConnectorConfig())
    assert language.padded_vocab() > VOCABULARY
    state = {name: tensor.read() for name, tensor in (tower | decoder).items()}
    config = _run(model)
    with distributed(config.parallel, seed=1) as ranks:
        (ours,) = build_stages(config, ranks)
        report = ours.load_state_dict(state, strict=False)
        assert not report.unexpected_keys
        missing = [name for name in report.missing_keys if not name.endswith("_extra_state")]
        assert missing
        assert all(name.startswith("connector.") for name in missing)
        yield Pair(llama, clip, ours.eval(), model)


def _run(model: ModelConfig) -> RunConfig:
    return run_from_dict(
        {
            "model": model,
            "data": {"sequence_length": LENGTH},
            "train": {"precision": "fp32", "global_batch": 2, "micro_batch": 2},
        }
    )


def _batch(num_images: int) -> Microbatch:
    """Two rows of random text; up to two images in the first and one in the second."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(3, VOCABULARY, (2, LENGTH), generator=generator)
    starts = torch.tensor([[0, 2], [0, 9], [1, 7]])[:num_images].view(-1, 2)
    for row, start in starts.tolist():
        tokens[row, start : start + 4] = 0
    labels = tokens.roll(-1, dims=1)
    labels[:, -3:] = IGNORE_LABEL
    shape = (num_images, 3, GRID * PATCH, GRID * PATCH)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Microbatch(tokens, labels, images, starts, num_samples=2)


def _largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "a comparison of zeros proves nothing"
    return (ours - theirs).abs().max().item()


@torch.inference_mode()
def test_llama_logits(pair: Pair) -> None:
    batch = _batch(num_images=0)
    logits = pair.ours(batch, with_loss=False)
    theirs = pair.llama(input_ids=batch.tokens).logits
    assert _largest_difference(logits[..., :VOCABULARY], theirs) < TOLERANCE
    assert (logits[..., VOCABULARY:] == torch.finfo(torch.float32).min).all()


@torch.inference_mode()
def test_padding_rows_of_the_vocabulary_do_not_enter_the_loss(pair: Pair) -> None:
    batch = _batch(num_images=0)
    theirs = F.cross_entropy(
        pair.llama(input_ids=batch.tokens).logits.transpose(1, 2), batch.labels, reduction="none"
    )
    is_trained = batch.labels != IGNORE_LABEL
    loss = pair.ours(batch)
    assert _largest_difference(loss[is_trained], theirs[is_trained]) < TOLERANCE


@torch.inference_mode()
def test_clip_features(pair: Pair) -> None:
    images = _batch(num_images=3).images
    pixels = normalize_images(images, torch.float32)
    patch = pair.ours.vision.patch_dim
    ours = pair.ours.vision(normalize_patchify(images, patch, torch.float32))[:, 1:]
    theirs = pair.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert _largest_difference(ours, theirs) < TOLERANCE


@torch.inference_mode()
def test_whole_model_with_images(pair: Pair) -> None:
    batch = _batch(num_images=3)
    pixels = normalize_images(batch.images, torch.float32)
    features = pair.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    visual = plain(pair.model.connector, dict(pair.ours.connector.named_parameters()), features)
    embeds = pair.llama.get_input_embeddings()(batch.tokens)
    for image, (row, start) in enumerate(batch.image_starts.tolist()):
        embeds[row, start : start + 4] = visual[image]
    theirs = pair.llama(inputs_embeds=embeds).logits
    ours = pair.ours(batch, with_loss=False)[..., :VOCABULARY]
    assert _largest_difference(ours, theirs) < TOLERANCE


def test_an_export_computes_the_same(pair: Pair, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    train_tokenizer(random_sentences(200), tokenizer, VOCABULARY)
    batch = _batch(num_images=3)
    with torch.inference_mode():
        logits = pair.ours(batch, with_loss=False)
    state = lazily({n: p.detach() for n, p in pair.ours.named_parameters()})
    write_export(state, pair.model, tokenizer, tmp_path / "export", torch.float32)
    reference = Reference.of_microbatch(batch, logits, pair.model)
    result = compare_export(tmp_path / "export", reference, tolerance=TOLERANCE)
    assert 0 <= result.max_difference < TOLERANCE

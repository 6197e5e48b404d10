"""Every family: published -> training checkpoint -> the same logits -> every format -> the same."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support import families
from tests.support.families import NAMES, VOCABULARY
from tests.support.tiny_data import random_sentences
from vila_mc.checkpoint.whole import whole_model
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.proof.compare import Reference, compare_exports
from vila_mc.convert.proof.reference import proving_model, reference_of
from vila_mc.convert.read_parts import read_language
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.kernels.reference import normalize_images

TOLERANCE = 1e-5


@dataclasses.dataclass
class Imported:
    """What was published, and the training checkpoint made of it."""

    family: families.Family
    source: ForeignModel
    checkpoint: Path
    tokenizer: Path


Exports = dict[tuple[str, str], tuple[Path, Reference]]
"""Directory and what it must compute, by family and format."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(random_sentences(200), path, VOCABULARY)
    return path


@pytest.fixture(scope="module")
def imported(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imported]:
    """Every family, imported."""
    result = {}
    for name in NAMES:
        family, folder = families.make(name), tmp_path_factory.mktemp("family")
        family.save(folder)
        source = combine_parts(
            folder / "llm",
            folder / "vision",
            family.connector,
            select_layer=family.select_layer,
        )
        import_checkpoint(source, folder / "ours")
        result[name] = Imported(family, source, folder / "ours", tokenizer)
    return result


def _largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "a comparison of zeros proves nothing"
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("name", NAMES)
def test_training_computes_what_was_published(name: str, imported: dict[str, Imported]) -> None:
    case = imported[name]
    with whole_model(case.checkpoint) as (ours, manifest), torch.inference_mode():
        vision = manifest.config.model.vision
        state = dict(ours.named_parameters())
        assert all(torch.equal(state[n], t.read()) for n, t in case.source.tensors.items())

        ids = torch.randint(0, VOCABULARY, (2, 90), generator=torch.Generator().manual_seed(1))
        logits = ours.language(ids, None, None)[..., :VOCABULARY]
        theirs = case.family.language(ids, attention_mask=torch.ones_like(ids)).logits
        assert _largest_difference(logits, theirs) < TOLERANCE

        side = vision.image_size
        images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
        pixels = normalize_images(
            images, torch.float32, vision.resolved_channel_mean(), vision.resolved_channel_std()
        )
        states = case.family.vision_model()(pixels, output_hidden_states=True).hidden_states
        expected = states[case.family.select_layer]
        assert _largest_difference(ours.patch_features(images), expected) < TOLERANCE


@pytest.fixture(scope="module")
def exported(imported: dict[str, Imported], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Every family in every format it can have, in fp32, with what it must compute."""
    result: Exports = {}
    for name, case in imported.items():
        for kind in case.family.formats:
            output = tmp_path_factory.mktemp("export") / kind
            export_checkpoint(
                case.checkpoint, output, kind, tokenizer=case.tokenizer, max_shard_bytes=100_000
            )
            # A large model is proven without holding its weights; here, every other one.
            is_streamed = len(result) % 2 == 1
            with proving_model(case.checkpoint, torch.float32, is_streamed=is_streamed) as proving:
                reference = reference_of(proving, has_images=kind != "llm")
            result[name, kind] = output, reference
    return result


def test_every_export_computes_the_same_in_a_fresh_process(
    exported: Exports,
) -> None:
    results = compare_exports(list(exported.values()), tolerance=TOLERANCE)
    assert len(results) == sum(len(families.make(name).formats) for name in NAMES)
    assert all(0 <= result.max_difference < TOLERANCE for result in results)


def test_every_export_comes_back_bit_by_bit(
    exported: Exports, imported: dict[str, Imported]
) -> None:
    for (name, kind), (directory, _) in exported.items():
        expected = dict(imported[name].source.tensors)
        if kind == "llm":
            config, given = read_language(directory)
            expected = {n: t for n, t in expected.items() if n.startswith("language.")}
            assert config == imported[name].source.model.language
        else:
            whole = read_whole(directory)
            assert whole.model == imported[name].source.model, (name, kind)
            given = whole.tensors
        assert given.keys() == expected.keys(), (name, kind)
        for tensor, values in expected.items():
            assert torch.equal(given[tensor].read(), values.read()), (name, kind, tensor)

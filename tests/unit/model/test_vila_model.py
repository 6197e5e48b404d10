"""One stage that holds everything: splice, vocabulary mask, freezing."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from tests.support.tiny import VOCABULARY, tiny_microbatches, tiny_run
from vila_mc.config.train import MODEL_PARTS
from vila_mc.config.trainable import learning_pieces
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.model.build import build_stages, count_weights
from vila_mc.model.freeze import freeze_all_but
from vila_mc.model.megatron_config import quick_gelu
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


@pytest.fixture
def model(ranks: Ranks) -> VilaModel:
    return build_stages(tiny_run(), ranks)[0]


@pytest.fixture
def batch() -> Microbatch:
    """One row with two images."""
    return tiny_microbatches(tiny_run(), 0, 1)[1]


def test_tokens_below_an_image_do_not_matter(model: VilaModel, batch: Microbatch) -> None:
    per_image = tiny_run().model.visual_tokens()
    tokens = batch.tokens.clone()
    for row, start in batch.image_starts.tolist():
        tokens[row, start : start + per_image] = 7
    assert torch.equal(model(batch), model(dataclasses.replace(batch, tokens=tokens)))


def test_pixels_matter_from_their_position_on(model: VilaModel, batch: Microbatch) -> None:
    images = batch.images.clone()
    images[1] = 255 - images[1]
    (_, second) = batch.image_starts[1].tolist()
    before = model(batch, with_loss=False)
    after = model(dataclasses.replace(batch, images=images), with_loss=False)
    assert torch.equal(before[:, :second], after[:, :second])
    assert not torch.allclose(before[:, second:], after[:, second:])


def test_images_and_their_places_must_agree(model: VilaModel, batch: Microbatch) -> None:
    with pytest.raises(ValueError, match="places for 2 images; vision gave 1 x 4"):
        model(dataclasses.replace(batch, images=batch.images[:1]))


def test_labels_of_ignored_positions_do_not_matter(model: VilaModel, batch: Microbatch) -> None:
    assert (batch.labels == IGNORE_LABEL).any()
    is_trained = batch.labels != IGNORE_LABEL
    other = dataclasses.replace(batch, labels=batch.labels.masked_fill(~is_trained, 5))
    assert torch.equal(model(batch)[is_trained], model(other)[is_trained])


def test_padding_of_the_vocabulary_has_no_probability(model: VilaModel, batch: Microbatch) -> None:
    logits = model(batch, with_loss=False)
    assert logits.shape[-1] == 256 > VOCABULARY
    assert logits.softmax(-1)[..., VOCABULARY:].sum() == 0
    assert logits[..., :VOCABULARY].isfinite().all()


def test_every_vision_parameter_gets_a_zero_from_a_blank_image(model: VilaModel) -> None:
    without_images = tiny_microbatches(tiny_run(), 0, 1)[2]
    assert len(without_images.images) == 0
    model(without_images).sum().backward()
    vision = [*model.vision.parameters(), *model.connector.parameters()]
    assert all(parameter.grad is None for parameter in vision)
    reference = {name: p.grad for name, p in model.language.named_parameters()}

    model.zero_grad()
    model.needs_every_gradient = True
    model(without_images).sum().backward()
    assert all(parameter.grad is not None for parameter in vision)
    assert not any(parameter.grad.any() for parameter in vision)
    for name, parameter in model.language.named_parameters():
        assert torch.equal(parameter.grad, reference[name]), name


@pytest.mark.parametrize("trainable", [("connector",), ("connector", "language"), MODEL_PARTS])
def test_freezing_goes_by_part(model: VilaModel, trainable: tuple[str, ...]) -> None:
    freeze_all_but(model, learning_pieces(trainable, model.run_config.model))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] in trainable), name


def test_weights_are_counted_once(model: VilaModel, ranks: Ranks) -> None:
    assert count_weights([model], ranks) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("init_std", [0.02, None])
def test_fresh_weights_spread_as_told_or_by_width(ranks: Ranks, init_std: float | None) -> None:
    stage = build_stages(tiny_run(train={"init_std": init_std}), ranks)[0]
    for part, width in ((stage.vision, 32), (stage.language, 64)):
        qkv = part.decoder.layers[0].self_attention.linear_qkv.weight
        expected = (2 / (5 * width)) ** 0.5 if init_std is None else init_std
        assert qkv.std().item() == pytest.approx(expected, rel=0.05)
    fc1 = stage.connector.fc1.weight
    expected = ((2 if init_std is None else 1 / 3) / fc1.size(1)) ** 0.5
    assert fc1.std().item() == pytest.approx(expected, rel=0.05)


def test_fresh_weights_follow_the_seed(ranks: Ranks) -> None:
    def weights(seed: int) -> torch.Tensor:
        stage = build_stages(tiny_run(train={"seed": seed}), ranks)[0]
        return torch.cat([parameter.flatten() for parameter in stage.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_quick_gelu() -> None:
    x = torch.linspace(-5, 5, 41)
    assert torch.allclose(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)), atol=1e-6)

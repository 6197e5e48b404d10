"""Adapters on one rank: where they are added, what they leave alone, and what they drop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.parity.lora_trace import EVERYWHERE, adapters_of, make_adapters_matter
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.config.lora import is_adapter
from vila_mc.config.run import RunConfig
from vila_mc.model.build import build_stages, count_weights
from vila_mc.model.lora import fold_adapters
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.adapters import adapters_line
from vila_mc.train.step import Trainer


def _run(**lora: Any) -> RunConfig:
    return tiny_run(train={"trainable": ["connector"]}, lora=lora)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


def _loss(stage: VilaModel, config: RunConfig) -> torch.Tensor:
    with torch.no_grad():
        loss: torch.Tensor = stage(tiny_microbatches(config, 0, 1)[1])
        return loss


def test_at_the_start_the_model_computes_what_it_did_without(ranks: Ranks) -> None:
    (plain,), (adapted,) = build_stages(_run(), ranks), build_stages(_run(**EVERYWHERE), ranks)
    assert _loss(adapted, _run()).equal(_loss(plain, _run()))
    make_adapters_matter(adapted, ranks)
    assert not _loss(adapted, _run()).allclose(_loss(plain, _run()), rtol=1e-3)


def test_folded_into_the_weights_they_compute_the_same(ranks: Ranks) -> None:
    (stage,) = build_stages(_run(**EVERYWHERE), ranks)
    make_adapters_matter(stage, ranks)
    expected = _loss(stage, _run())
    fold_adapters(stage)
    assert _loss(stage, _run()).allclose(expected, rtol=1e-5)
    assert not any(weight.any() for name, weight in adapters_of(stage) if ".lora_b_" in name)


def test_first_values_follow_from_seed_and_place_alone(ranks: Ranks) -> None:
    (few,) = build_stages(_run(rank=4, targets=["k_proj"]), ranks)
    (many,) = build_stages(_run(**EVERYWHERE), ranks)
    wanted, found = dict(adapters_of(many)), dict(adapters_of(few))
    assert len(found) == 4 * 2
    assert all(weight.equal(wanted[name]) for name, weight in found.items())
    values = [weight.flatten()[0].item() for name, weight in wanted.items() if "lora_a" in name]
    assert len(set(values)) == len(values), "no two adapters begin alike"


def test_nothing_but_adapters_and_what_is_trainable_learns_or_costs(ranks: Ranks) -> None:
    config = _run(**EVERYWHERE)
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    (stage,) = trainer.stages
    before = {name: weight.detach().clone() for name, weight in stage.named_parameters()}
    batches = tiny_microbatches(config, 0, 1)
    for _ in range(2):  # A has no gradient as long as B is zero
        trainer.step(batches)
    for name, weight in stage.named_parameters():
        learns = is_adapter(name) or name.startswith("connector.")
        assert weight.requires_grad == learns, name
        assert (getattr(weight, "main_grad", None) is not None) == learns, name
        assert weight.equal(before[name]) != learns, name
    learning = count_weights(trainer.stages, ranks, trained_only=True)
    line = adapters_line(trainer)
    gradients, optimizer = (learning * count / 2**20 for count in (4, 8))
    assert f"; gradients of all that learns take {gradients:.2f} MiB" in line
    assert f"the optimizer {optimizer:.2f} MiB over all ranks" in line
    assert line.startswith("lora.rank 4 on q_proj, k_proj")
    assert "vision fc2; " in line


def test_dropout_is_of_training_and_drops_shares_of_the_input(ranks: Ranks) -> None:
    config = _run(rank=4, dropout=0.5)
    (stage,) = build_stages(config, ranks)
    make_adapters_matter(stage, ranks)
    first, second = _loss(stage, config), _loss(stage, config)
    assert not first.equal(second)
    stage.eval()
    whole = _loss(stage, config)
    assert whole.equal(_loss(stage, config))
    assert whole.allclose(first, rtol=0.2)

"""The loss on data that nothing learns from, and that measuring it leaves no trace."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.errors import ExitCode
from vila_mc.flow import IGNORE_LABEL, Microbatch
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.faults import StopRequest
from vila_mc.train.step import Trainer
from vila_mc.train.validation import validate


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


def _owned(batches: list[Microbatch]) -> list[Microbatch]:
    """Each of one sample, by turns of the first and the second of three datasets."""
    return [
        replace(batch, sample_lengths=((batch.tokens.size(1),),), entries=((index % 2,),))
        for index, batch in enumerate(batches)
    ]


def test_it_is_the_loss_of_a_step_however_it_is_cut_into_passes(ranks: Ranks) -> None:
    config = tiny_run(data={"blend": [{"path": name} for name in "abc"]})
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = _owned(tiny_microbatches(config, 0, 1))
    whole, _ = validate(trainer, [batches], 3, step=7)
    parts, _ = validate(trainer, [batches[:1], batches[1:4], batches[4:]], 3, step=7)
    step = trainer.step(batches)
    assert (whole.step, whole.validation_tokens) == (7, step.trained_tokens)
    for found in (whole, parts):
        assert found.validation_loss == pytest.approx(step.loss, rel=1e-6)
        assert found.validation_loss_by_entry[2] is None
        entries = found.validation_loss_by_entry[:2]
        assert entries == pytest.approx(step.loss_by_entry[:2], rel=1e-6)
    assert validate(trainer, [batches], 3, step=8)[0].validation_loss < whole.validation_loss


def test_it_leaves_no_trace(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(data={"blend": [{"path": "a"}, {"path": "b"}]})
    trainers = [Trainer(config, ranks, build_stages(config, ranks)) for _ in range(2)]
    batches = _owned(tiny_microbatches(config, 0, 1))
    watched, plain = trainers
    seen: list[tuple[bool, bool]] = []
    stage = watched.stages[0]
    forward = stage.forward

    def look(*arguments: Any, **options: Any) -> Any:
        training = any(module.training for module in watched.wrapped[0].modules())
        seen.append((training, torch.is_grad_enabled()))
        return forward(*arguments, **options)

    stage.language.decoder.eval()  # stays as it was
    monkeypatch.setattr(stage, "forward", look)
    for _ in range(3):
        assert watched.step(batches) == plain.step(batches)
        gradients = [weight.main_grad.clone() for weight in stage.parameters()]
        seen.clear()
        random = torch.get_rng_state()
        validate(watched, [batches, batches[:3]], 2, step=1)
        assert seen == [(False, False)] * (len(batches) + 3)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(
            torch.equal(weight.main_grad, gradient)
            for weight, gradient in zip(stage.parameters(), gradients, strict=True)
        )
        assert stage.training
        assert not stage.language.decoder.training


def test_nothing_trained_has_no_loss(ranks: Ranks) -> None:
    config = tiny_run(data={"blend": [{"path": "a"}, {"path": "b"}]})
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = _owned(tiny_microbatches(config, 0, 1))
    for batch in batches:
        batch.labels.fill_(IGNORE_LABEL)
    record, _ = validate(trainer, [batches], 2, step=1)
    assert math.isnan(record.validation_loss)
    assert (record.validation_tokens, record.validation_loss_by_entry) == (0, [None, None])


def test_a_request_to_stop_is_heard_at_its_end(ranks: Ranks) -> None:
    config, stop = tiny_run(data={"blend": [{"path": "a"}, {"path": "b"}]}), StopRequest()
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = _owned(tiny_microbatches(config, 0, 1))
    assert not validate(trainer, [batches], 2, 1, stop)[1]
    stop.make(ExitCode.REQUEUE)
    assert validate(trainer, [batches], 2, 1, stop)[1]

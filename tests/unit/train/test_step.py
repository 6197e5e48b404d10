"""The loss as a sum and a count; a loss that is no number."""

import pytest
import torch

from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.errors import TrainingError
from vila_mc.flow import IGNORE_LABEL
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer, loss_sum_and_count


def test_sum_and_count_are_of_trained_positions():
    labels = torch.tensor([[1, IGNORE_LABEL, 3], [IGNORE_LABEL, 0, IGNORE_LABEL]])
    loss_bs = torch.tensor([[1.0, 10.0, 2.0], [20.0, 4.0, 30.0]], requires_grad=True)
    loss_sum, count, report = loss_sum_and_count(labels, loss_bs)
    assert (loss_sum.item(), count.item(), report["loss_sum"].item()) == (7.0, 3, 7.0)
    loss_sum.backward()
    assert loss_bs.grad.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert not report["loss_sum"].requires_grad


def test_nothing_trained_is_zero_of_zero():
    labels = torch.full((1, 4), IGNORE_LABEL)
    loss_sum, count, _ = loss_sum_and_count(labels, torch.rand(1, 4))
    assert (loss_sum.item(), count.item()) == (0.0, 0)


@pytest.fixture(scope="module")
def ranks():
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


def test_a_step_reports_the_global_batch(ranks):
    config = tiny_run()
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = tiny_microbatches(config, 0, 1)
    first = trainer.step(batches)
    trained = sum(int((batch.labels != IGNORE_LABEL).sum()) for batch in batches)
    assert (first.trained_tokens, first.num_images, first.should_stop) == (trained, 4, False)
    second = trainer.step(batches, should_stop=True)
    assert second.should_stop
    assert second.loss < first.loss


def test_a_step_that_trains_nothing_ends_the_run(ranks):
    config = tiny_run()
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    batches = tiny_microbatches(config, 0, 1)
    for batch in batches:
        batch.labels.fill_(IGNORE_LABEL)
    length = config.data.sequence_length
    with pytest.raises(TrainingError, match=f"no token .* data.sequence_length {length}"):
        trainer.step(batches)


def test_a_loss_that_is_no_number_ends_the_run(ranks):
    config = tiny_run()
    stages = build_stages(config, ranks)
    trainer = Trainer(config, ranks, stages)
    with torch.no_grad():
        stages[0].language.decoder.final_layernorm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        trainer.step(tiny_microbatches(config, 0, 1))
